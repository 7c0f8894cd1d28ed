"""STATE to bytes and back: what a checkpoint holds, and how it comes to disk whole."""
