"""Attention over the cells of glimpses, and what is looked at by it."""
