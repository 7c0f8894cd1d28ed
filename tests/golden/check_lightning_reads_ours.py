"""Do Lightning and ESPnet3 go on from espnet3_lite's files as it does? Run by hand; the README has the answer.

    PYTHONPATH=<espnet 202611, unpacked>:<this repository> python tests/golden/check_lightning_reads_ours.py

Like `make_espnet3_checkpoints.py` it needs lightning 2.6.6, which no test may: its imports stand in functions.
"""

import contextlib
import io
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).parent


def resume_in_lightning(lab, ours, theirs, name, folder):
    """Our whole run and its checkpoint; the rest of the run in Lightning; how far apart they are.

    Returns:
        Batches compared; the largest difference of parameters after a batch; whether rates and ends are the same.
    """
    exp_dir = folder / name
    kept = folder / "kept"
    whole = lab.run_case(ours, name, exp_dir, keep=kept)
    shutil.rmtree(exp_dir)
    kept.rename(exp_dir)
    if "max_epochs_first" in lab.CASES[name]:
        whole = lab.run_case(ours, name, folder / "whole")
    resumed = lab.run_case(theirs, name, exp_dir, resume=exp_dir / lab.file_of(name, ours))
    rest = whole["batches"][-len(resumed["batches"]) :]
    pairs = list(zip(rest, resumed["batches"], strict=True))
    difference = max(abs(a - b) for x, y in pairs for a, b in zip(x["parameters"], y["parameters"], strict=True))
    updates = 2 if "our_file" in lab.CASES[name] else 1  # of named optimizers in a batch: ESPnet3 counts each
    same = {
        "batches": all((a["epoch"], a["batch_idx"]) == (b["epoch"], b["batch_idx"]) for a, b in pairs),
        "rates": all(a["rates"] == b["rates"] for a, b in pairs),
        "steps": all(updates * a["global_step"] == b["global_step"] for a, b in pairs),
        "epochs": whole["epochs"][-len(resumed["epochs"]) :] == resumed["epochs"],
        "best": scores(whole) == scores(resumed),
        "stopping": whole["stopping"] == resumed["stopping"],
    }
    return len(pairs), difference, same


def scores(run):
    """The best files' scores, to five digits: means are kept in float32."""
    return {monitor: sorted(f"{score:.5g}" for score in files.values()) for monitor, files in run["best"].items()}


def load_from_checkpoint(lab, ours, folder):
    """`LightningModule.load_from_checkpoint` of a LiteModule's file with `save_hyperparameters`."""
    import lightning.pytorch as lightning

    lab.run_case(ours, "module", folder / "module")
    file = folder / "module" / "at12.ckpt"
    written = torch.load(file, weights_only=True)
    plain = type(lab.plain_module(lightning.LightningModule))
    module = plain.load_from_checkpoint(file, rate=0.5)
    same = all(torch.equal(value, module.state_dict()[key]) for key, value in written["state_dict"].items())
    return same and dict(module.hparams) == {"width": 6, "rate": 0.5}


def average_loads(lab, ours, folder):
    """The averaged file of an ESPnetModule's run, into the bare model, strictly, with plain `torch.load`."""
    lab.run_case(ours, "criteria", folder / "criteria")
    files = sorted((folder / "criteria").glob("*.ave_*best.pth"))
    for file in files:
        model = lab.scenarios.build_model("g1_callbacks_two_criteria")
        model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    return [file.name for file in files]


def main():
    """Print one line a case."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]
    from make_espnet3_checkpoints import espnet3_library

    lab, theirs = espnet3_library()
    import test_lightning_checkpoints

    ours = test_lightning_checkpoints.OURS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for case in sys.argv[1:] or lab.CASES:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                count, difference, same = resume_in_lightning(lab, ours, theirs, case, folder)
            others = [what for what, is_same in same.items() if not is_same]
            print(
                f"{case:20} {count:3} batches, largest difference {difference:.1e}; not the same: {others or 'nothing'}"
            )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            loaded, averages = load_from_checkpoint(lab, ours, folder / "a"), average_loads(lab, ours, folder / "b")
    print(f"load_from_checkpoint: {loaded}")
    print(f"averages that load into the model: {averages}")


if __name__ == "__main__":
    main()
