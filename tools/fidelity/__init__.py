"""How good predictions are: networks trained in part, their candidates scored, and the truth found by building them."""
