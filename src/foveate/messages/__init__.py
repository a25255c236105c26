"""Report progress and warnings about files, without a line for each of a thousand files."""
