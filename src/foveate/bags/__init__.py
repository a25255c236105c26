"""Bags of patches: embedded, and related to each other."""
