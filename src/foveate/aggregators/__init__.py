"""Aggregators: networks that answer from the tokens of a glimpse and its patches, one file each."""
