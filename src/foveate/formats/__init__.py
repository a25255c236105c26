"""What is inside files of the formats that foveate decodes itself."""
