"""What a run looks like afterwards: its history read from files, pictures of it, and a page."""
