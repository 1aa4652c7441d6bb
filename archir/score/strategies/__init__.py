"""Rules that rank candidates: the joint Gauss-Newton model and what others do instead, behind one interface."""
