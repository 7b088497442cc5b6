"""Measure a trained network on a split or a labeled corpus."""
