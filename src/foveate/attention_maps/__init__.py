"""Attention over the cells of glimpses, and the choice of patches by it."""
