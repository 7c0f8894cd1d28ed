"""Run by torchrun in test_collect_stats.py: arguments are the recipe, the output folder, and what should fail."""

import sys

import torch
import torch.distributed as dist
from data_parts import LogEnergy, NotANumber

from espnet3_lite.distributed.group import join_process_group
from espnet3_lite.espnet.data.collect_stats import collect_stats
from espnet3_lite.espnet.data.organizer import DataOrganizer


def main():
    recipe, output, failing = sys.argv[1:]
    join_process_group(torch.device("cpu"))
    wav = f"{recipe}/wav"
    organizer = DataOrganizer(
        train=[{"data_src_args": {"folder": wav, "stop": 8}}],
        valid=[{"data_src_args": {"folder": wav, "start": 8}}],
        recipe_dir=recipe,
        preprocessor={"_target_": "data_parts.Spell"},
    )
    model = NotANumber() if failing == "yes" and dist.get_rank() == 1 else LogEnergy()
    collect_stats(model, organizer, output, batch_size=3)
    print(f"rank {dist.get_rank()} is done")


if __name__ == "__main__":
    main()
