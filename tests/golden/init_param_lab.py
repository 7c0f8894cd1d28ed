"""Loads parts of files into a model by espnet2's `load_pretrained_model` and by ours, and prints what each made of it.

Run where espnet is installed: ``python tests/golden/init_param_lab.py FOLDER``. A line of JSON for each description has
its text, and for both sides the values of all parameters and buffers, or the error's type.
"""

import json
import sys
from pathlib import Path

import torch
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

from espnet3_lite.espnet.parameters import load_parameters

DESCRIPTIONS = (
    "{file}",
    "{file}:",
    "{file}::",
    "{file}:encoder:encoder",
    "{file}:encoder:encoder:",
    "{file}:decoder:decoder:decoder.embed",
    "{file}:::decoder",
    "{file}:::encoder.1,decoder.output",
    "{file}:encoder.0:encoder.1",
    "{file}:decoder.embed:decoder.output",
    "{file}:encoder:decoder",
    "{file}:encoder:missing",
    "{file}:encoder",
    "{deepspeed}",
    "{deepspeed}:decoder:decoder",
    "{part}::decoder",
    "{wider}",
    "{wider}:::decoder.output",
    "{file}:a:b:c:d",
    "{absent}",
)


LOADERS = {"espnet": load_pretrained_model, "ours": load_parameters}


class Decoder(torch.nn.Module):
    """Two parts of one shape."""

    def __init__(self):
        super().__init__()
        self.embed, self.output = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)


class Model(torch.nn.Module):
    """Weights, and the statistics of a `BatchNorm1d`."""

    def __init__(self, value, width=2):
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(width, 2), torch.nn.Linear(width, 2), torch.nn.BatchNorm1d(2)
        )
        self.decoder = Decoder()
        for number, tensor in enumerate(self.state_dict().values()):
            tensor.fill_(value + number)


def outcome(load, *arguments):
    """All values of a fresh model, or the error's type."""
    model = Model(0)
    try:
        load(*arguments[:-1], model, arguments[-1]) if load is load_pretrained_model else load(model, *arguments)
    except Exception as error:
        return type(error).__name__
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def main(folder):
    """Writes the files and prints the lines."""
    files = {name: str(folder / f"{name}.pth") for name in ("file", "deepspeed", "part", "wider", "absent")}
    state = Model(100).state_dict()
    torch.save(state, files["file"])
    torch.save({"module": state}, files["deepspeed"])
    torch.save(Model(100).decoder.state_dict(), files["part"])
    torch.save(Model(100, width=3).state_dict(), files["wider"])
    for text in DESCRIPTIONS:
        for ignore in (False, True):
            given = text.format(**files)
            sides = {side: outcome(load, given, ignore) for side, load in LOADERS.items()}
            print(json.dumps({"given": text, "ignore": ignore, **sides}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
