"""Record what espnet2's own `GANTrainer` does in each turn of 8 batches, in float64. By hand, where espnet is::

python tests/golden/make_gan.py
"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


def options(values):
    """`GANTrainerOptions`, whose fields this epoch does not read are None."""
    from espnet2.train.gan_trainer import GANTrainerOptions

    names = {field.name: None for field in dataclasses.fields(GANTrainerOptions)}
    read = {
        "ngpu": 0, "grad_noise": False, "accum_grad": 1, "grad_clip": -1.0, "grad_clip_type": 2.0, "log_interval": 100,
        "no_forward_run": False, "use_wandb": False, "skip_discriminator_prob": 0.0,
    }  # fmt: skip
    return GANTrainerOptions(**{**names, **read, **values})


def record(case):
    import gan_lab
    from espnet2.schedulers.warmup_lr import WarmupLR
    from espnet2.train.distributed_utils import DistributedOption
    from espnet2.train.gan_trainer import GANTrainer
    from espnet2.train.reporter import Reporter

    case = dict(case)
    model = gan_lab.TwoTurns(index=case.pop("index", "number"))
    optimizers = {
        name: torch.optim.Adam(getattr(model, name).parameters(), lr=rate) for name, rate in gan_lab.RATE.items()
    }
    schedulers = [WarmupLR(optimizer, warmup_steps=gan_lab.WARMUP) for optimizer in optimizers.values()]
    steps = gan_lab.record_steps(model, optimizers)
    reporter = Reporter()
    reporter.set_epoch(1)
    with reporter.observe("train") as observed:
        GANTrainer.train_one_epoch(
            model=model, iterator=gan_lab.batches(), optimizers=list(optimizers.values()), schedulers=schedulers,
            scaler=None, reporter=observed, summary_writer=None, options=options(case),
            distributed_option=DistributedOption(),
        )  # fmt: skip
    with contextlib.suppress(KeyError):
        return {"steps": steps, "stats": {k: reporter.get_value("train", k, 1) for k in
                                          ("generator_loss", "discriminator_loss")}}  # fmt: skip
    return {"steps": steps}


def main():
    sys.path.insert(0, str(HERE.parent / "helpers"))
    import gan_lab

    found = {name: record(case) for name, case in gan_lab.CASES.items()}
    (HERE / "gan" / "turns.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
