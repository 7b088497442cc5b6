"""Turn a corpus into shards: labels, decoding, splits and preprocessing."""
