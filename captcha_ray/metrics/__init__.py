"""Counts, confidences and comparisons; numpy only."""
