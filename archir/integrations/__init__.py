"""Growth within the training loops of other packages, each installed by an extra of its own."""
