"""What growth is worth: tasks, ways to spend a budget on them, and a record of every training."""
