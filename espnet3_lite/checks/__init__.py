"""WHAT users' code may get wrong: looked at before it runs, and explained where it fails."""
