"""Converts checkpoints."""
