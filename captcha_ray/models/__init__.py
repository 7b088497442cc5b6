"""Define networks, their descriptions and their checkpoints. Stays empty: a night with nothing new loads no torch."""
