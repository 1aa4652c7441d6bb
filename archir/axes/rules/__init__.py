"""Axis rules, one file an operator family."""
