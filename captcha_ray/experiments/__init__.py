"""Train several networks on parts of the images: cross-validation and learning curves."""
