"""A run: its options, its plan, its folder and its models."""
