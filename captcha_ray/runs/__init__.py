"""Run directories: what stands in them and what it was made by."""
