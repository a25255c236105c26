"""Methods: one file each, one paper each."""
