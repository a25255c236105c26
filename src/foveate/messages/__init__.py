"""What is said of files and of progress, without a line for each of a thousand."""
