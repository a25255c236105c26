"""Scores of predictions, and an audit of what a model uses."""
