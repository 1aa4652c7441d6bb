"""Growing a network under a budget."""
