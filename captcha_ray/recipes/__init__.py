"""Recipes: how a network is trained, by name, from a file, or as follows from the shards."""
