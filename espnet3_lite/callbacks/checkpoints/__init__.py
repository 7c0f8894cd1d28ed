"""WHICH checkpoint files: their names and folder, which of them stay, and the mean of the best."""
