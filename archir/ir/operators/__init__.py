"""The one table of ATen operators: what is known of each, one operator family a file."""
