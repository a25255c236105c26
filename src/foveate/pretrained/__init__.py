"""Weights from elsewhere: files, hubs, and the networks they fit."""
