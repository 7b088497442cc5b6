"""Search a recipe's parameters for better ones."""
