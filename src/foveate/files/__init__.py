"""What is written to disk and read from it: aside and renamed, locked, journalled, checked."""
