"""Tests; a package of its own, so that nobody else's `tests` on the path is taken for it."""
