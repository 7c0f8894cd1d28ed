"""Logged values: what `log` takes, and what becomes of it at a step and at an epoch's end."""
