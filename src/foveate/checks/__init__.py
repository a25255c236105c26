"""The check of a table and its images before training: facts, findings and a page."""
