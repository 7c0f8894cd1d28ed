"""WHAT the user writes: the module, the data module, their hooks and hyper-parameters."""
