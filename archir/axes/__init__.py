"""Axis terms: which widths may change, and what changes with them."""
