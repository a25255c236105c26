"""Code that several test modules share: images in memory, batches, commands, comparisons."""
