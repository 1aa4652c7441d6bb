"""Rewrites: morphisms and the primitives they are made of."""
