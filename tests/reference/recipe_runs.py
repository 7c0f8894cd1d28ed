"""Which of the wheel's recipes load and train here, without Lightning. Run in an environment with espnet 202611::

    python tests/reference/recipe_runs.py FOLDER OUTPUT [WORDS...]

FOLDER has a copy of the wheel's `egs3`, in which the corpora are prepared by ``espnet3-lite stage``: mini AN4's, which
is in the wheel, and those of ``toy_corpora.py``. OUTPUT gets a line of JSON for each training configuration, or for
those whose path has one of WORDS: does it load, does it train two epochs, does a run that was cut after
one end with the same bits? ``docs/espnet-recipes.md`` has the table.
"""

import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tools"))  # for the transducers' loss

#: One process, whatever the recipe's authors had, and the same random numbers in each run.
OVERRIDES = ("num_device=1", "trainer.accelerator=cpu", "+trainer.num_sanity_val_steps=0", "seed=3")


def configurations(folder):
    """All training configurations of the recipes, templates left out."""
    for path in sorted((folder / "egs3").glob("*/*/conf/**/*.yaml")):
        if "TEMPLATE" not in path.parts and path.name.startswith("train"):
            yield path


def shortest(error):
    """The first line of an error, and of what caused it."""
    lines = [str(error).strip().splitlines()[0] if str(error).strip() else ""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def load(path, *overrides):
    """A configuration as the command `train` reads it."""
    from espnet3_lite.cli.arguments import read_config
    from espnet3_lite.cli.commands import _parse

    recipe = next(folder.parent for folder in path.parents if folder.name == "conf")
    os.chdir(recipe)
    return read_config(_parse(["train", str(path), *overrides]))


def train(path, tag, epochs):
    """Train in the recipe's ``exp/TAG``; a run that is there goes on."""
    from espnet3_lite.espnet import experiment

    config = load(path, *OVERRIDES, f"exp_tag={tag}", f"trainer.max_epochs={epochs}")
    experiment.prepare(config)
    return experiment.train(config)


def try_one(path):
    import torch

    from espnet3_lite.config.schema import check_config
    from espnet3_lite.espnet import experiment
    from espnet3_lite.espnet.import_aliases import espnet_stand_ins

    result = {"loads": True, "trains": None, "resumes": None}
    try:
        with espnet_stand_ins():
            check_config(load(path))
    except Exception as error:  # what a configuration raises is what the table says
        return {**result, "loads": shortest(error)}
    try:
        config = load(path, *OVERRIDES)
        if not Path(config.stats_dir, "train").exists():
            experiment.collect(config)
        whole = train(path, f"{path.stem}_whole", 2)
        train(path, f"{path.stem}_cut", 1)
        cut = train(path, f"{path.stem}_cut", 2)
        result["trains"] = whole.trainer.global_step > 0 and whole.trainer.current_epoch == 2
        pairs = zip(whole.model.state_dict().values(), cut.model.state_dict().values(), strict=True)
        result["resumes"] = all(torch.equal(one, other) for one, other in pairs)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        result["trains"] = shortest(error)
    return result


def main():
    from warprnnt_pytorch import RNNTLoss

    RNNTLoss()  # numba's first code changes how torch rounds from then on: it runs before the first model does
    folder, output, *words = sys.argv[1:]
    folder = Path(folder).resolve()
    with open(output, "w", encoding="utf-8") as file:
        for path in configurations(folder):
            name = str(path.relative_to(folder))
            if not words or any(word in name for word in words):
                print(json.dumps({"configuration": name, **try_one(path)}), file=file, flush=True)


if __name__ == "__main__":
    main()
