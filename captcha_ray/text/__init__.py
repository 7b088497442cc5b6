"""Characters of labels: the alphabet, and the order in which an image shows them."""
