"""Pixels: their specification, and how the bytes of an image file become them."""
