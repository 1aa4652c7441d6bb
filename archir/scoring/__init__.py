"""Gauss-Newton prediction of what a rewrite, or a set of rewrites, does to the loss."""
