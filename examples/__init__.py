"""Lessons: a folder each, run from the repository's root. They are not installed with the package."""
