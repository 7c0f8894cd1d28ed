"""Record checkpoints that ESPnet3 under Lightning writes, and how its runs go on from them. Run by hand:

    PYTHONPATH=<espnet 202611, unpacked> python tests/golden/make_espnet3_checkpoints.py

It needs lightning 2.6.6 and what espnet3's trainer imports; torchaudio, which is not used, is stood in for. Folders'
names in the files are replaced by ``/experiments/<case>``. The tests never run this file, and pytest, which looks into
every file for doctests, finds its imports inside functions.
"""

import contextlib
import io
import json
import logging
import shutil
import sys
import tempfile
import types
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

HERE = Path(__file__).parent
OUTPUT = HERE / "espnet3_checkpoints"


def espnet3_library():
    """`checkpoint_lab`'s library of ESPnet3 and Lightning."""
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import EarlyStopping  # noqa: F401  (named in configurations)
    from omegaconf import OmegaConf

    sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]
    import checkpoint_lab as lab

    torchaudio = types.ModuleType("torchaudio")
    torchaudio.__path__ = []
    for name in ("torchaudio", "torchaudio.functional", "torchaudio.transforms", "torchaudio.compliance"):
        sys.modules.setdefault(name, torchaudio)
    from espnet3.components.modeling.lightning_module import ESPnetLightningModule
    from espnet3.components.modeling.optimization_spec import OptimizationStep
    from espnet3.components.trainers.trainer import ESPnet3LightningTrainer

    def make(case, exp_dir):
        if case["base"] == "module":
            return make_plain(case, exp_dir)
        config = lab.config_of(case, exp_dir)
        config.update(dataset={"_target_": "checkpoint_lab.NoData"}, dataloader={"train": {}, "valid": {}})
        config["num_device"] = 1
        config["trainer"]["logger"] = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(exp_dir)}
        if case.get("precision") == "16-mixed":  # by name, Lightning takes bfloat16 on a CPU
            scaler = {"_target_": "torch.amp.GradScaler", "device": "cpu"}
            plugin = {"_target_": "lightning.pytorch.plugins.precision.MixedPrecision", "precision": "16-mixed"}
            config["trainer"]["plugins"] = [{**plugin, "device": "cpu", "scaler": scaler}]
        config = OmegaConf.create(config)
        module = ESPnetLightningModule(lab.scenarios.build_model(case["base"], OptimizationStep), config)
        criterion = config.best_model_criterion
        wrapper = ESPnet3LightningTrainer(module, str(exp_dir), config.trainer, criterion)
        return wrapper.trainer, wrapper.fit

    def make_plain(case, exp_dir):
        every = case.get("every_n_train_steps")
        saves = lightning.callbacks.ModelCheckpoint(
            exp_dir, "at{step}", save_top_k=-1, auto_insert_metric_name=False, every_n_train_steps=every
        )
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_model_summary=False, enable_progress_bar=False,
            max_epochs=case.get("trainer", {}).get("max_epochs", 4), callbacks=[saves],
        )  # fmt: skip
        module = lab.plain_module(lightning.LightningModule, case.get("manual", False))
        return trainer, lambda **kwargs: trainer.fit(module, **kwargs)

    recorder = lambda: lab.make_recorder(lightning.Callback)  # noqa: E731
    return lab, SimpleNamespace(make=make, recorder=recorder, ours=False)


def without_folder(value, folder, replacement):
    """The same value with a folder's name replaced in every text."""
    if isinstance(value, str):
        return value.replace(folder, replacement)
    if isinstance(value, dict):
        return type(value)((without_folder(k, folder, replacement), without_folder(v, folder, replacement))
                           for k, v in value.items())  # fmt: skip
    if isinstance(value, list):
        return [without_folder(item, folder, replacement) for item in value]
    return value


def record(lab, library, name):
    """One case: the whole run, its checkpoint, and the run resumed from it in the same folder."""
    with tempfile.TemporaryDirectory() as folder:
        exp_dir = Path(folder).resolve() / name
        kept, file = exp_dir.with_suffix(".kept"), lab.file_of(name, library)
        first = lab.run_case(library, name, exp_dir, keep=kept)
        shutil.rmtree(exp_dir)
        kept.rename(exp_dir)
        checkpoint = torch.load(exp_dir / file, weights_only=False)
        torch.save(without_folder(checkpoint, str(exp_dir), f"/experiments/{name}"), OUTPUT / f"{name}.ckpt")
        whole = first if "max_epochs_first" not in lab.CASES[name] else None
        resumed = lab.run_case(library, name, exp_dir, resume=exp_dir / file)
    (OUTPUT / f"{name}.json").write_text(json.dumps({"whole": whole, "resumed": resumed}) + "\n")
    return whole, resumed


def main():
    """Record all cases, or those named on the command line."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    OUTPUT.mkdir(exist_ok=True)
    lab, library = espnet3_library()
    for name in sys.argv[1:] or lab.CASES:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            whole, resumed = record(lab, library, name)
        ends = [
            None if run is None else (run["epoch"], run["global_step"], len(run["batches"])) for run in (whole, resumed)
        ]
        same = whole is not None and whole["parameters"] == resumed["parameters"]
        print(f"{name:22} {ends} stopping {resumed['stopping']} same end: {same}")


if __name__ == "__main__":
    main()
