"""Bags of patches: reading, embedding and relating all patches of an image."""
