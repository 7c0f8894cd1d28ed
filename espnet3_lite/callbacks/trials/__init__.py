"""TRIALS before a fit, for the callbacks that search: a few steps on a copy, and where the value that is found goes."""
