"""Trains one network, data-parallel, and resumes it."""
