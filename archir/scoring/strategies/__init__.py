"""Strategies: the joint ones, which score candidates together, and what others do instead, behind one interface."""
