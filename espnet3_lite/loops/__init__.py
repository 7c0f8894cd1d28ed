"""WHEN things happen. Begin reading in `fit.py`."""
