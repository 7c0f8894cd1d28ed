"""A rank that ends at once after a collective whose last owner is gloo's own thread. For `rank_lab.torchrun`."""

import sys
import time

import torch
import torch.distributed as dist

from espnet3_lite.distributed.group import join_process_group


def main():
    join_process_group(torch.device("cpu"))
    dist.destroy_process_group = lambda: None  # it lets other threads run by chance; gloo's may come later than that
    sys.setswitchinterval(100)  # this thread keeps Python's lock, as on a machine where the other is not scheduled
    value = torch.ones(1000)
    work = dist.all_reduce(value, async_op=True)
    del value, work
    until = time.perf_counter() + 1
    while time.perf_counter() < until:
        pass


if __name__ == "__main__":
    main()
