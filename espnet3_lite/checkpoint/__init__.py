"""STATE to bytes and back: what a checkpoint holds, how it comes to disk whole, and averages of several files."""
