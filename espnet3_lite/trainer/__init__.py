"""Settings in, four calls out: fit, validate, test, predict. Begin reading in `trainer.py`."""
