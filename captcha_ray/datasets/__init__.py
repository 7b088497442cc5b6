"""Corpora in, shards out: labels, decoding, splits, preprocessing, and synthetic corpora."""
