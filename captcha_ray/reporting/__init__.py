"""Writes the HTML report of a run."""
