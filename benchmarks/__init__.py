"""The trainer's time and memory beside loops written by hand that do the same: ``python -m benchmarks``.

Each row is a ratio. Its two sides run in alternation in one process (those on several ranks too), after a round that
warms up, and the row gives medians and minima. What the sides train is compared where that can be: a benchmark whose
sides do different work is refused. What was measured where is kept in `RESULTS.md`.

- `measuring.py`: what a row is, and how it is measured; `__main__.py`: the command.
- `steps.py`, `peers.py`: training steps and validation batches; `ranks.py`: the same on two ranks.
- `files.py`: checkpoints; `data.py`: batches; `runs.py`: whole runs, resuming, memory, imports.
"""
