"""Draw synthetic corpora, those of the demo among them."""
