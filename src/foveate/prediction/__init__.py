"""Prediction by trained models, and the files that it writes."""
