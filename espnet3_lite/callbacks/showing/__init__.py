"""WHAT a run says by itself, and how wide a bar may be."""
