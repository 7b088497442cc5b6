"""Turn a corpus into shards: labels, decoding, splits, preprocessing, and synthetic corpora."""
