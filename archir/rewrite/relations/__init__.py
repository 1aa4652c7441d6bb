"""How operators relate the exponents of a width, one file an operator family."""
