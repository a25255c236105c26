"""Opening images ahead of use."""
