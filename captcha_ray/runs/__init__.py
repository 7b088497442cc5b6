"""Keep run directories: their files, and what they were made by."""
