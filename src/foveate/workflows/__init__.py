"""Whole commands: train, predict, evaluate, demo, doctor."""
