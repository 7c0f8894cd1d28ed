"""Random runs, by Lightning and by this package: hooks, logged values, weights, files and states, side by side.

``python tests/golden/random_runs_lab.py FIRST LAST``, in an environment with Lightning 2.6.6: seeds FIRST to LAST - 1.
Each seed draws data, a module, a trainer's settings, callbacks and what follows the fit. The last line is JSON, how
many runs had which trait. The first difference ends it, with both sides' lines around it. What differs on purpose (see
``docs/differences.md``) is not drawn, or is left out in `comparable`.
"""

import collections
import contextlib
import io
import json
import logging
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

# ---- both sides ------------------------------------------------------------------------------------------------------


def lightnings():
    import lightning.pytorch as lightning
    from lightning.pytorch import callbacks, loggers

    modules = (lightning.LightningModule, lightning.LightningDataModule)
    return SimpleNamespace(
        trainer=lightning.Trainer, module=modules[0], data_module=modules[1], callback=lightning.Callback,
        callbacks=callbacks, logger=loggers.Logger,
    )  # fmt: skip


def ours():
    import espnet3_lite
    from espnet3_lite import callbacks, loggers

    return SimpleNamespace(
        trainer=espnet3_lite.Trainer, module=espnet3_lite.LiteModule, data_module=espnet3_lite.LiteDataModule,
        callback=espnet3_lite.Callback, callbacks=callbacks, logger=loggers.Logger,
    )  # fmt: skip


# ---- what is drawn ---------------------------------------------------------------------------------------------------

STEP_HOOKS = (
    "training_step",
    "validation_step",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_batch_end",
)
LOG_HOOKS = (*STEP_HOOKS, "on_before_optimizer_step", "on_train_start", "on_train_epoch_start", "on_train_epoch_end",
             "on_validation_start", "on_validation_epoch_end")  # fmt: skip
STOPS = ((0, 1, "on_train_batch_end"), (1, 1, "on_train_batch_start"), (0, 2, "training_step"),
         (0, None, "on_validation_end"), (1, None, "on_train_epoch_end"))  # fmt: skip


def drawn(seed):
    """A case, as a dict of plain values."""
    chance = random.Random(seed)
    case = {"seed": seed, "manual": chance.random() < 0.15, "resume": chance.random() < 0.3}
    stream = not case["resume"] and chance.random() < 0.25
    case["train"] = {"count": chance.choice([5, 8, 12, 17, 20]), "size": chance.choice([2, 3, 4]), "stream": stream}
    case["shuffle"] = not stream and not case["resume"] and chance.random() < 0.4
    case["val"] = [
        {"count": chance.choice([4, 6, 9]), "size": chance.choice([2, 3]), "stream": chance.random() < 0.3}
        for _ in range(chance.choice([0, 1, 1, 1, 2]))
    ]
    case["trainer"] = settings = trainer_settings(chance, case)
    case["data_module"] = chance.random() < 0.3
    case["optimizer"] = chance.choice(["SGD", "Adam"] if case["manual"] else ["SGD", "Adam", "momentum", "LBFGS"])
    case["optimizers"] = chance.choice([1, 2]) if case["manual"] else 1
    case["scheduler"] = scheduler(chance, case)
    case["logs"] = [log_call(chance) for _ in range(chance.randrange(4))]
    if (
        case["optimizer"] == "LBFGS"
    ):  # such a value makes Lightning forget the first evaluations of an epoch's first batch
        case["logs"] = [log for log in case["logs"] if log["hook"] != "on_before_optimizer_step"]
    case["metric"] = chance.random() < 0.3 and len(case["val"]) < 2
    case["returns"] = chance.choice(["tensor", "tensor", "dict", "none sometimes"])
    case["callbacks"] = callbacks(chance, case)
    stops = chance.random() < 0.25 and not case["resume"]
    case["stop"] = chance.choice(STOPS) if stops else None
    ends = chance.random() < 0.4 and case["scheduler"] is None and not case["resume"] and not stream
    case["ends_epoch"] = chance.choice([(0, 2), (1, 0), (1, 1)]) if ends else None
    if any(log["hook"] == "on_train_batch_start" for log in case["logs"]):
        case["ends_epoch"] = None
    case["overrides"] = [
        hook
        for hook in ("lr_scheduler_step", "configure_gradient_clipping", "backward", "optimizer_zero_grad")
        if chance.random() < 0.1 and not (hook == "configure_gradient_clipping" and "gradient_clip_val" in settings)
    ]
    case["then"] = [call for call in ("validate", "test", "predict") if chance.random() < 0.15]
    if not case["val"] and "validate" in case["then"]:
        case["then"].remove("validate")
    return case


def trainer_settings(chance, case):
    settings = {"max_epochs": chance.choice([1, 2, 3, 4])}

    def perhaps(share, name, *values):
        if values and chance.random() < share:
            settings[name] = chance.choice(values)

    whole_only = case["train"]["stream"]  # a stream is limited by whole numbers
    if not case["resume"]:
        perhaps(0.25, "max_steps", 1, 3, 5, 7)
        perhaps(0.12, "reload_dataloaders_every_n_epochs", *(() if case["shuffle"] else (1, 2)))
    perhaps(0.15, "min_epochs", 1, 2, 3)
    perhaps(0.15, "min_steps", 2, 6, 9)
    perhaps(0.25, "limit_train_batches", 1, 0, *(() if whole_only else (2, 0.5, 1.0)))
    perhaps(0.25, "limit_val_batches", 1, 0, 1.0)
    perhaps(0.35, "val_check_interval", 1, *(() if whole_only else (0.5, 0.34, 1.0)))
    perhaps(0.2, "check_val_every_n_epoch", 1, 2, 3)
    if type(settings.get("val_check_interval")) is int and chance.random() < 0.3:
        settings["check_val_every_n_epoch"] = None
    perhaps(0.4, "num_sanity_val_steps", 0, 1, -1)
    perhaps(0.3, "log_every_n_steps", 1, 2, 5)
    if not case["manual"]:
        perhaps(0.4, "accumulate_grad_batches", 2, 3, 4)
        perhaps(0.3, "gradient_clip_val", 0.5, 0.1)
    return settings


def scheduler(chance, case):
    kind = chance.choice([None, None, "StepLR", "ExponentialLR", "ReduceLROnPlateau"])
    if kind is None or case["trainer"].get("limit_train_batches") == 0:
        return None
    interval = "epoch" if kind == "ReduceLROnPlateau" else chance.choice(["epoch", "step"])
    monitor = "train_loss" if len(case["val"]) != 1 or chance.random() < 0.5 else "val_loss"
    if {"limit_val_batches", "check_val_every_n_epoch", "val_check_interval"} & case["trainer"].keys():
        monitor = "train_loss"  # validations are made where an epoch's scheduler can be due
    return {"kind": kind, "interval": interval, "frequency": chance.choice([1, 1, 2, 3]), "monitor": monitor}


def log_call(chance):
    hook = chance.choice(LOG_HOOKS)
    how = {"prog_bar": chance.random() < 0.3, "logger": chance.random() < 0.8}
    how["reduce_fx"] = chance.choice(["mean", "mean", "max", "min", "sum"])
    if hook in STEP_HOOKS:
        how.update(chance.choice([{}, {"on_step": True}, {"on_epoch": True}, {"on_step": False, "on_epoch": True}]))
    if chance.random() < 0.4:
        how["batch_size"] = 3
    return {"hook": hook, "by": chance.choice(["module", "callback"]), "how": how, "dict": chance.random() < 0.2}


def callbacks(chance, case):
    found = []
    validates = len(case["val"]) == 1 and not {"limit_val_batches", "check_val_every_n_epoch"} & case["trainer"].keys()
    # Lightning's resumed runs forget that their first step was saved, and save again before they step.
    forgets = case["resume"] and "accumulate_grad_batches" in case["trainer"]
    if chance.random() < 0.6 and not forgets:
        monitor = chance.choice([None, "val_loss"]) if validates else None
        saves = {"monitor": monitor, "save_top_k": chance.choice([1, -1, 2] if monitor else [1, -1])}
        saves.update(mode=chance.choice(["min", "max"]), save_last=chance.choice([None, True]))
        by_steps = {} if monitor else {"every_n_train_steps": 2}
        saves.update(chance.choice([{}, {"every_n_epochs": 2}, by_steps]))
        saves.update(chance.choice([{}, {"filename": "{epoch}-{step}"}, {"save_weights_only": True}]))
        found.append(("ModelCheckpoint", saves))
    if chance.random() < 0.25 and not case["resume"]:  # an early-stopped run stays stopped
        watched = {
            "monitor": "train_loss",
            "patience": chance.choice([0, 1, 2]),
            "min_delta": chance.choice([0.0, 5.0]),
        }
        watched.update(mode=chance.choice(["min", "max"]), check_on_train_epoch_end=True, strict=False)
        found.append(("EarlyStopping", watched))
    if chance.random() < 0.25:
        found.append(("LearningRateMonitor", {"logging_interval": chance.choice([None, "step", "epoch"])}))
    if chance.random() < 0.1 and not case["manual"] and "accumulate_grad_batches" not in case["trainer"]:
        found.append(("GradientAccumulationScheduler", {"scheduling": {0: 1, 1: 2}}))
    if chance.random() < 0.07:
        found.append(("EMAWeightAveraging", {"decay": 0.9}))
    return found


# ---- a run -----------------------------------------------------------------------------------------------------------


class Numbers(Dataset):
    def __init__(self, count, seed):
        self.x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.x[index].sum().reshape(1) + 0.1


class Stream(IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return (self.data[index] for index in range(len(self.data)))


def loader(wanted, seed, shuffle=False):
    data = Numbers(wanted["count"], seed)
    return DataLoader(Stream(data) if wanted["stream"] else data, batch_size=wanted["size"], shuffle=shuffle)


def rounded(values):
    return {name: round(float(value), 9) for name, value in sorted(values.items())}


#: Each with whether the first argument after trainer and module is a batch.
HOOKS = ("on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_batch_start", "on_train_batch_end",
         "on_train_epoch_start", "on_train_epoch_end", "on_validation_start", "on_validation_end",
         "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_start", "on_validation_epoch_end",
         "on_test_start", "on_test_end", "on_test_batch_end", "on_predict_start", "on_predict_end",
         "on_predict_batch_end", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
         "on_before_zero_grad")  # fmt: skip


class Run:
    """A case by one side: `lines` is what happened."""

    def __init__(self, case, side, folder):
        self.case, self.side, self.folder, self.lines, self.logged = case, side, folder, [], 0
        torch.manual_seed(case["seed"])
        try:
            self.run()
        except Exception as error:  # both sides must refuse the same
            self.lines.append(["error", type(error).__name__.replace("MisconfigurationRuntimeError", "RuntimeError")])
            self.error = error

    def run(self):
        module, trainer, case = self.module(), self.trainer(), self.case
        data = {"datamodule": self.data_module()} if case["data_module"] else {}
        trainer.fit(module, **data)
        self.note_end(trainer, module)
        if case["resume"]:
            saved = self.folder / "by_hand.ckpt"
            trainer.save_checkpoint(saved)
            module, trainer = self.module(), self.trainer(more_epochs=2)
            trainer.fit(module, ckpt_path=saved, **data)
            self.note_end(trainer, module)
        for call in case["then"]:
            verbose = {} if call == "predict" else {"verbose": False}
            results = getattr(trainer, call)(module, **verbose, **data)
            plain = [round(float(r), 9) if call == "predict" else rounded(r) for r in results]
            self.lines.append([call, plain])

    def note_end(self, trainer, module):
        weights = torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
        self.lines.append(["ended", trainer.current_epoch, trainer.global_step, trainer.should_stop])
        metrics = (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics)
        self.lines.append(["metrics", *map(rounded, metrics)])
        self.lines.append(["weights", [round(float(weight), 9) for weight in weights], module.training])
        for callback in trainer.callbacks:
            if type(callback).__name__ == "ModelCheckpoint":
                paths = (callback.best_model_path, callback.last_model_path, *sorted(callback.best_k_models))
                self.lines.append(["saved", *(Path(path).name for path in paths)])
            elif type(callback).__name__ == "EarlyStopping":
                self.lines.append(["stopping", callback.wait_count, callback.stopped_epoch, float(callback.best_score)])
            elif type(callback).__name__ == "LearningRateMonitor":
                self.lines.append(["rates", {name: list(map(float, rates)) for name, rates in callback.lrs.items()}])
        self.lines.append(["files", sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*.ckpt"))])

    def note(self, who, hook, trainer, module, arguments):
        """Note a hook that was called, and do there what the case says."""
        case, numbers = self.case, [a for a in arguments if isinstance(a, int) and not isinstance(a, bool)]
        self.lines.append([who, hook, trainer.current_epoch, trainer.global_step, numbers])
        self.log(who, hook, module)
        here = trainer.current_epoch, numbers[0] if numbers else None
        stop = case["stop"]
        if stop and who == "module" and hook == stop[2] and not trainer.sanity_checking:
            trainer.should_stop = trainer.should_stop or here in ((stop[0], stop[1]), (stop[0], None))
        if hook == "on_train_batch_start" and who == "module" and case["ends_epoch"] == here:
            return -1
        return None

    def log(self, who, hook, module):
        for index, call in enumerate(self.case["logs"]):
            if (call["hook"], call["by"]) == (hook, who):
                self.logged += 1
                value, name = torch.tensor(float(self.logged)), f"value{index}"
                if call["dict"]:
                    module.log_dict({f"{name}x": value, f"{name}y": value * 2}, **call["how"])
                else:
                    module.log(name, value, **call["how"])

    # ---- its parts ---------------------------------------------------------------------------------------------------

    def trainer(self, more_epochs=0):
        settings = dict(self.case["trainer"])
        settings["max_epochs"] += more_epochs
        found = [recording_callback(self)]
        for name, arguments in self.case["callbacks"]:
            where = {"dirpath": self.folder / "saved"} if name == "ModelCheckpoint" else {}
            found.append(getattr(self.side.callbacks, name)(**arguments, **where))
        return self.side.trainer(
            accelerator="cpu", devices=1, default_root_dir=self.folder, callbacks=found, logger=recording_logger(self),
            enable_progress_bar=False, enable_model_summary=False, **settings,
        )  # fmt: skip

    def module(self):
        return module_class(self)()

    def data_module(self):
        run, case = self, self.case

        class Data(self.side.data_module):
            def prepare_data(self):
                run.lines.append(["data", "prepare_data"])

            def setup(self, stage):
                run.lines.append(["data", "setup", str(getattr(stage, "value", stage))])

            def teardown(self, stage):
                run.lines.append(["data", "teardown", str(getattr(stage, "value", stage))])

        for name, method in loaders(run, case, "data").items():
            setattr(Data, name, method)
        return Data()


def loaders(run, case, who):
    """The methods that give loaders, for a module or its data."""

    def train_dataloader(self):
        run.lines.append([who, "train_dataloader"])
        return loader(case["train"], 1, case["shuffle"])

    def val_dataloader(self):
        run.lines.append([who, "val_dataloader"])
        found = [loader(wanted, 2 + index) for index, wanted in enumerate(case["val"])]
        return found if len(found) > 1 else found[0]

    def six(self):
        return loader({"count": 6, "size": 2, "stream": False}, 9)

    methods = {"train_dataloader": train_dataloader, "test_dataloader": six, "predict_dataloader": six}
    return {**methods, "val_dataloader": val_dataloader} if case["val"] else methods


def recording_logger(run):
    class Recorder(run.side.logger):
        name, version, save_dir = "recorder", "0", str(run.folder)

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            run.lines.append(["logged", step, rounded(metrics)])

        def finalize(self, status):
            run.lines.append(["finalized", status])

    return Recorder()


def recording_callback(run):
    class Recorder(run.side.callback):
        pass

    def listening(hook):
        return lambda self, trainer, module, *args: run.note("callback", hook, trainer, module, args)

    for hook in (*HOOKS, "on_sanity_check_start", "on_sanity_check_end"):
        setattr(Recorder, hook, listening(hook))
    return Recorder()


def module_class(run):
    case = run.case

    class Module(run.side.module):
        def __init__(self):
            super().__init__()
            dropout = torch.nn.Dropout(0.0 if case["resume"] or reloads(case) else 0.2)
            layers = (torch.nn.Linear(4, 3), torch.nn.Tanh(), dropout, torch.nn.Linear(3, 1))
            self.layer = torch.nn.Sequential(*layers).double()
            self.automatic_optimization = not case["manual"]
            if case["metric"]:
                from torchmetrics import MeanMetric

                self.seen, self.seen_in_validation = MeanMetric(), MeanMetric()

        def loss(self, batch):
            return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

        def training_step(self, batch, batch_idx):
            run.note("module", "training_step", self.trainer, self, (batch_idx,))
            loss = self.loss(batch)
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            if case["metric"]:
                self.seen(loss.detach())
                self.log("seen", self.seen, on_step=bool(case["seed"] % 2), on_epoch=True)
            if case["manual"]:
                self.step_by_hand(batch)
            if case["returns"] == "none sometimes" and batch_idx % 3 == 1:
                return None
            return {"loss": loss, "more": loss.detach()} if case["returns"] == "dict" else loss

        def step_by_hand(self, batch):
            optimizers = self.optimizers()
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                self.clip_gradients(optimizer, 0.5, "norm")
                optimizer.step()
                self.untoggle_optimizer(optimizer)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            run.note("module", "validation_step", self.trainer, self, (batch_idx, dataloader_idx))
            loss = self.loss(batch)
            self.log("val_loss", loss)
            if case["metric"]:
                self.seen_in_validation.update(loss.detach())
                self.log("seen_in_validation", self.seen_in_validation)
            return loss

        def test_step(self, batch, batch_idx):
            self.log("test_loss", self.loss(batch))

        def predict_step(self, batch, batch_idx):
            return self.layer(batch[0]).sum()

        def configure_optimizers(self):
            kinds = {"momentum": (torch.optim.SGD, {"momentum": 0.9}), "LBFGS": (torch.optim.LBFGS, {"max_iter": 3})}
            kind, more = kinds.get(case["optimizer"]) or (getattr(torch.optim, case["optimizer"]), {})
            parts = [list(self.layer[0].parameters()), list(self.layer[3].parameters())]
            groups = parts if case["optimizers"] == 2 else [parts[0] + parts[1]]
            optimizers = [kind(group, lr=0.01, **more) for group in groups]
            if case["scheduler"] is None:
                return optimizers
            return optimizers, [self.scheduler(optimizer, **case["scheduler"]) for optimizer in optimizers]

        def scheduler(self, optimizer, kind, interval, frequency, monitor):
            arguments = {"StepLR": {"step_size": 2}, "ExponentialLR": {"gamma": 0.9}}.get(kind, {"patience": 0})
            made = getattr(torch.optim.lr_scheduler, kind)(optimizer, **arguments)
            return {"scheduler": made, "interval": interval, "frequency": frequency, "monitor": monitor}

    def listening(hook):
        return lambda self, *args: run.note("module", hook, self.trainer, self, args)

    for hook in HOOKS:
        setattr(Module, hook, listening(hook))
    for name in case["overrides"]:
        setattr(Module, name, OVERRIDES[name](run))
    if not case["data_module"]:
        for name, method in loaders(run, case, "module").items():
            setattr(Module, name, method)
    return Module


def reloads(case):
    """A reloaded epoch's random numbers are others in Lightning, which makes its iterator twice."""
    return "reload_dataloaders_every_n_epochs" in case["trainer"]


def _lr_scheduler_step(run):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step() if metric is None else scheduler.step(metric)

    return lr_scheduler_step


def _configure_gradient_clipping(run):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        run.lines.append(["module", "configure_gradient_clipping", gradient_clip_val])
        self.clip_gradients(optimizer, gradient_clip_val=0.3, gradient_clip_algorithm="norm")

    return configure_gradient_clipping


def _backward(run):
    def backward(self, loss, *args, **kwargs):
        run.lines.append(["module", "backward"])
        loss.backward(*args, **kwargs)

    return backward


def _optimizer_zero_grad(run):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        run.lines.append(["module", "optimizer_zero_grad", epoch, batch_idx])
        optimizer.zero_grad()

    return optimizer_zero_grad


OVERRIDES = {"lr_scheduler_step": _lr_scheduler_step, "configure_gradient_clipping": _configure_gradient_clipping,
             "backward": _backward, "optimizer_zero_grad": _optimizer_zero_grad}  # fmt: skip


# ---- one beside the other --------------------------------------------------------------------------------------------


def comparable(lines, case):
    """What happened, without what differs on purpose; and what was logged, which is not compared with the hooks' order.

    An epoch's row is logged before the checkpoint of its end is saved here, after it there. A resumed run shows the
    values that its checkpoint held, too. ``should_stop`` is of the call in work here, of the last fit there.
    """
    logged = [line for line in lines if line[0] == "logged"]
    rest = [line for line in lines if line[0] != "logged"]
    if case["resume"]:
        first = next((line for line in rest if line[0] == "metrics"), None)
        rest = [line for line in rest if line[0] != "metrics" or line is first]
    return rest, logged


def difference(case):
    """None where both sides did the same; else the lines around the first difference."""
    found, errors = [], []
    for side in (lightnings(), ours()):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            run = Run(case, side, Path(folder))
        found.append(comparable(run.lines, case))
        errors.append(getattr(run, "error", None))
    for theirs, mine in zip(*found, strict=True):
        place = next(
            (i for i, (a, b) in enumerate(zip(theirs, mine, strict=False)) if a != b), min(len(theirs), len(mine))
        )
        if theirs != mine:
            around = slice(max(0, place - 4), place + 4)
            return {"case": case, "Lightning": theirs[around], "here": mine[around], "errors": list(map(repr, errors))}
    return None


def main(first, last):
    """Compare seeds `first` to `last` - 1."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    traits = collections.Counter()
    for seed in range(first, last):
        case = drawn(seed)
        wrong = difference(case)
        if wrong is not None:
            sys.exit(json.dumps(wrong, indent=1))
        traits.update(name for name, value in case.items() if value)
        traits.update([*case["trainer"], *(kind for kind, _ in case["callbacks"])])
        traits.update([case["scheduler"]["kind"]] if case["scheduler"] else [])
    print(json.dumps(traits))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
