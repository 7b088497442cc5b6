"""Train one network, data-parallel, and resume it."""
