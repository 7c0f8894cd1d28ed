"""The files that ``espnet3-lite init`` writes: a recipe of the handwritten digits, for the user to change."""
