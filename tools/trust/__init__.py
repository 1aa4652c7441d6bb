"""Attacks on what archir reads and rewrites, each in a file of its own, and what runs and judges them."""
