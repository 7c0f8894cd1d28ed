"""WHICH optimizer: windows, clipping, number formats, and when learning rates change."""
