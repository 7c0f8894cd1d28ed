"""Recorded numbers are those of one thread: several add up in another order, and a bias that stands before a BatchNorm,
whose gradient is rounding noise, shows it. Two processes of one thread each are also quicker here than two of two.
"""

import os

import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start
