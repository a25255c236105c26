"""Parse and decode the file formats that foveate reads without a library's image class."""
