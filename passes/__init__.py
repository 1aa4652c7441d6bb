"""Morphisms and simplifications, one a file."""
