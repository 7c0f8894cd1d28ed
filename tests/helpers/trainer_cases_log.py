"""Cases of `trainer_lab`: what `self.log` does with each argument in each hook, and who gets the values when."""

import itertools

import torch
from trainer_lab import HOOKS, case, cases, loader

_TRAINING = ("training_step", "on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward",
             "on_before_optimizer_step", "on_before_zero_grad")  # fmt: skip
_VALIDATION = ("validation_step", "on_validation_batch_start", "on_validation_batch_end")
_EPOCH = ("on_train_start", "on_train_epoch_start", "on_train_epoch_end", "on_validation_start",
          "on_validation_epoch_start", "on_validation_epoch_end", "on_test_start", "on_test_epoch_start",
          "on_test_epoch_end", "test_step", "on_test_batch_end")  # fmt: skip


def logging_module(lab, hook, value=None, **arguments):
    """A module that logs a counter in one hook, with these arguments, and nothing else."""

    class Logs(lab.Module):
        count = 0

        def training_step(self, batch, batch_idx):
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            return None

        test_step = validation_step

    original = getattr(Logs, hook)

    def logs(self, *args, **keywords):
        self.count += 1
        self.log("value", float(self.count**2) if value is None else value, **arguments)
        return original(self, *args, **keywords)

    setattr(Logs, hook, logs)
    return Logs()


_FLAGS = (None, True, False)


@cases(
    **{
        f"{hook},{on_step},{on_epoch}": {"hook": hook, "arguments": {"on_step": on_step, "on_epoch": on_epoch}}
        for hook in ("training_step", "on_train_batch_end", "validation_step", "on_validation_batch_end")
        for on_step, on_epoch in itertools.product(_FLAGS, _FLAGS)
        if (on_step, on_epoch) != (False, False)
        and not (hook.startswith("on_train") and (on_step, on_epoch) == (False, None))
        and (on_step, on_epoch) != ({"t": False, "o": None, "v": None}[hook[0]], None if hook[0] == "t" else False)
        and not (hook == "on_validation_batch_end" and (on_step, on_epoch) == (None, False))
    }
)
def log_when(lab, hook, arguments):
    trainer = lab.trainer(max_epochs=2, num_sanity_val_steps=0, log_every_n_steps=2)
    trainer.fit(logging_module(lab, hook, **arguments), loader(3), loader(2))
    lab.end(trainer)


@cases(
    **{
        f"{hook},{on_step},{on_epoch}": {"hook": hook, "on_step": on_step, "on_epoch": on_epoch}
        for hook, on_step, on_epoch in (
            ("training_step", False, False), ("training_step", False, None), ("validation_step", None, False),
            ("on_train_epoch_end", True, None), ("on_train_epoch_end", None, False),
            ("on_validation_start", True, None),
            ("on_validation_epoch_end", True, True), ("on_train_start", True, False),
            ("on_train_epoch_start", True, None),
        )
    }
)  # fmt: skip
def log_when_wrong(lab, hook, on_step, on_epoch):
    with lab.error("self.log"):
        lab.trainer(max_epochs=1, num_sanity_val_steps=0).fit(
            logging_module(lab, hook, on_step=on_step, on_epoch=on_epoch), loader(2), loader(2)
        )


@cases(**{hook: {"hook": hook} for hook in (*_TRAINING, *_VALIDATION, *_EPOCH) if "test" not in hook})
def log_in(lab, hook):
    trainer = lab.trainer("order metrics", max_epochs=2, num_sanity_val_steps=0, log_every_n_steps=1)
    trainer.fit(logging_module(lab, hook), loader(3), loader(2))
    lab.end(trainer)


@cases(**{hook: {"hook": hook} for hook in _EPOCH if "test" in hook})
def log_in_test(lab, hook):
    trainer = lab.trainer("order metrics")
    lab.note("test", trainer.test(logging_module(lab, hook), loader(3), verbose=False))
    lab.end(trainer)


@cases(**{hook: {"hook": hook} for hook in (*_TRAINING, *_VALIDATION, *_EPOCH[:6])})
def log_bar_and_epoch(lab, hook):
    """With `prog_bar`, and over the epoch."""
    trainer = lab.trainer(max_epochs=2, num_sanity_val_steps=1, log_every_n_steps=2)
    trainer.fit(logging_module(lab, hook, prog_bar=True, on_epoch=True), loader(3), loader(2))
    lab.end(trainer)


_FORBIDDEN = (
    "setup", "on_fit_start", "on_sanity_check_start", "on_train_end", "on_fit_end", "on_validation_end", "teardown",
    "configure_optimizers", "train_dataloader", "prepare_data", "on_before_batch_transfer", "on_save_checkpoint",
)  # fmt: skip


@cases(**{hook: {"hook": hook} for hook in _FORBIDDEN if hook != "on_sanity_check_start"})
def log_where_it_cannot(lab, hook):
    module = logging_module(lab, hook)
    if hook == "train_dataloader":
        type(module).train_dataloader = lambda self: self.log("value", 1.0)
    trainer = lab.trainer(max_epochs=1, num_sanity_val_steps=0)
    with lab.error("self.log"):
        trainer.fit(module, None if hook == "train_dataloader" else loader(2), loader(1))
        if hook == "on_save_checkpoint":
            trainer.save_checkpoint(lab.folder / "x.ckpt")


@cases(**{hook: {"hook": hook} for hook in ("predict_step", "on_predict_start", "on_predict_batch_end",
                                            "on_predict_epoch_end", "on_predict_end", "on_test_end")})  # fmt: skip
def log_where_it_cannot_elsewhere(lab, hook):
    module, trainer = logging_module(lab, hook), lab.trainer()
    with lab.error("self.log"):
        trainer.test(module, loader(2), verbose=False) if "test" in hook else trainer.predict(module, loader(2))


@cases(**{f"{hook},{fx}": {"hook": hook, "fx": fx}
          for hook in ("training_step", "validation_step", "on_train_epoch_end")
          for fx in ("mean", "sum", "min", "max", "MEAN", "avg")},
       **{f"training_step,{n}": {"hook": "training_step", "fx": f} for n, f in (
           ("torch.mean", torch.mean), ("torch.sum", torch.sum), ("torch.max", torch.max), ("torch.min", torch.min),
           ("max()", max), ("min()", min), ("sum()", sum))})  # fmt: skip
def log_reduce(lab, hook, fx):
    trainer = lab.trainer(max_epochs=2, num_sanity_val_steps=0, log_every_n_steps=2)
    trainer.fit(logging_module(lab, hook, reduce_fx=fx, on_epoch=True), loader(3), loader(2))
    lab.end(trainer)


@cases(string={"fx": "median"}, function={"fx": torch.std}, own={"fx": lambda values: 0})
def log_reduce_wrong(lab, fx):
    with lab.error("mean", "sum"):
        lab.trainer(max_epochs=1).fit(logging_module(lab, "training_step", reduce_fx=fx), loader(1))


@cases(
    number={"size": 5},
    tensor={"size": torch.tensor(3)},
    zero={"size": 0},
    none={"size": None},
)
def log_batch_size(lab, size):
    """A mean weighted by the batch size, with a smaller last batch."""

    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("loss", loss, on_epoch=True, batch_size=size if batch_idx == 1 else None)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch), batch_size=size if batch_idx == 0 else None)

    data = torch.utils.data.DataLoader(loader(5, 1).dataset, batch_size=2)
    trainer = lab.trainer(max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(Logs(), data, data)
    lab.end(trainer)


@cases(
    dictionary={"make": lambda row: {"x": row, "n": 1}},
    nested={"make": lambda row: ["uid", {"a": {"b": row}}]},
    tuple={"make": lambda row: (row, 3)},
    scalar={"make": lambda row: row.sum()},
)
def log_batch_size_found(lab, make):
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return make(torch.full((2,), float(index)))

    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            self.log("value", float(batch_idx), on_epoch=True)
            return self.layer.weight.sum()

    trainer = lab.trainer(max_epochs=1)
    trainer.fit(Logs(), torch.utils.data.DataLoader(Data(), batch_size=2))
    lab.end(trainer)


_VALUES = {
    "int": 3, "bool": True, "float": 0.1, "float32": torch.tensor(0.1, dtype=torch.float32), "int64": torch.tensor(7),
    "one": torch.tensor([2.5]), "half": torch.tensor(0.5, dtype=torch.float16), "nested": torch.tensor([[1.5]]),
    "nan": float("nan"), "inf": float("inf"), "bool_tensor": torch.tensor(True),
    "grad": torch.ones((), requires_grad=True),
}  # fmt: skip


@cases(**{f"{name},{on_epoch}": {"value": value, "on_epoch": on_epoch} for name, value in _VALUES.items()
          for on_epoch in (False, True)})  # fmt: skip
def log_value(lab, value, on_epoch):
    trainer = lab.trainer(max_epochs=1, log_every_n_steps=1)
    trainer.fit(logging_module(lab, "training_step", value, on_epoch=on_epoch), loader(2))
    lab.end(trainer)
    lab.note("kinds", {name: [str(v.dtype), list(v.shape), v.requires_grad]
                       for name, v in trainer.callback_metrics.items() if "float32" not in str(v.dtype)})  # fmt: skip


@cases(vector={"value": torch.ones(2)}, text={"value": "x"}, list={"value": [1.0]}, dict={"value": {"a": 1.0}},
       empty={"value": torch.ones(0)})  # fmt: skip
def log_value_wrong(lab, value):
    with lab.error("self.log"):
        lab.trainer(max_epochs=1).fit(logging_module(lab, "training_step", value), loader(1))


@case
def log_name_wrong(lab):
    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            self.log("a/dataloader_idx_1", 1.0)

    with lab.error("dataloader_idx"):
        lab.trainer(max_epochs=1).fit(Logs(), loader(1))


@case
def log_twice_the_last_counts(lab):
    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            self.log("value", 1.0, on_epoch=True)
            self.log("value", 3.0, on_epoch=True)
            return self.loss(batch)

    lab.fit(Logs(), train=3)


@case
def log_twice_with_other_arguments(lab):
    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            self.log("value", 1.0, on_epoch=True)
            self.log("value", 3.0, on_epoch=False)
            return self.loss(batch)

    with lab.error("value", "different arguments"):
        lab.fit(Logs(), train=1)


@case
def log_one_name_in_several_hooks(lab):
    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            self.log("value", 1.0 + batch_idx)
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.log("value", 100.0 + batch_idx)

        def on_train_epoch_end(self):
            self.log("value", 1000.0)

    lab.fit(Logs(), train=2, val=2, max_epochs=2)


@case
def log_sometimes(lab):
    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            if self.current_epoch == 0 and batch_idx == 0:
                self.log("first", 1.0)
                self.log("first_epoch", 2.0, on_step=False, on_epoch=True)
            if batch_idx == 1:
                self.log("second", float(self.current_epoch), on_epoch=True)
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            if batch_idx == 1 or self.current_epoch == 1:
                self.log("val", float(batch_idx), on_step=True)

    lab.fit(Logs(), train=3, val=3, max_epochs=2, watch="order metrics")


@cases(**{f"{every},{train}": {"every": every, "train": train} for every, train in
          ((1, 3), (2, 3), (3, 2), (50, 3), (0, 2))})  # fmt: skip
def log_every(lab, every, train):
    lab.fit(train=train, max_epochs=3, log_every_n_steps=every)


@cases(accumulate2={"accumulate_grad_batches": 2}, accumulate3={"accumulate_grad_batches": 3, "log_every_n_steps": 2})
def log_every_with_windows(lab, **settings):
    lab.fit(train=5, max_epochs=2, **settings)


@case
def log_at_the_stop(lab):
    class Stops(lab.Module):
        def training_step(self, batch, batch_idx):
            self.trainer.should_stop = self.global_step >= 2
            return super().training_step(batch, batch_idx)

    lab.fit(Stops(), train=8, log_every_n_steps=50)


@cases(step={"name": "step"}, epoch={"name": "epoch"})
def log_the_axis(lab, name):
    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log(name, 10.0 * batch_idx + 3, on_epoch=True, on_step=False)
            return loss

        def on_train_epoch_end(self):
            self.log("end", 1.0)

    lab.fit(Logs(), train=2, max_epochs=2)


@cases(**{f"{logger},{bar}": {"logger": logger, "prog_bar": bar} for logger in (None, True, False)
          for bar in (True, False)})  # fmt: skip
def log_where_to(lab, logger, prog_bar):
    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("t", loss, logger=logger, prog_bar=prog_bar, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("v", self.loss(batch), logger=logger, prog_bar=prog_bar, on_step=True)

    lab.fit(Logs(), train=2, val=2)


@case
def log_dict(lab):
    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log_dict({"a": loss, "b": 2.0}, prog_bar=True, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log_dict({"v/a": batch_idx, "v/b": torch.tensor(2.0)})

    lab.fit(Logs(), train=2, val=2)


@cases(**{f"{index},{on_step}": {"index": index, "on_step": on_step} for index in (True, False)
          for on_step in (True, False)})  # fmt: skip
def log_with_several_loaders(lab, index, on_step):
    class Logs(lab.Module):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            name = "v" if index else f"v{dataloader_idx}"
            self.log(
                name, float(10 * dataloader_idx + batch_idx), add_dataloader_idx=index, on_step=on_step, prog_bar=True
            )

        def on_validation_epoch_end(self):
            self.log("whole", 1.0)

    trainer = lab.trainer("order metrics", max_epochs=1, num_sanity_val_steps=0, log_every_n_steps=1)
    trainer.fit(Logs(), loader(2), [loader(2), loader(3)])
    lab.end(trainer)
    lab.note("validate", trainer.validate(Logs(), [loader(2), loader(1), loader(1)], verbose=False))


@case
def log_one_name_for_several_loaders(lab):
    class Logs(lab.Module):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.log("v", float(dataloader_idx), add_dataloader_idx=False)

    with lab.error("different arguments"):
        lab.trainer().validate(Logs(), [loader(1), loader(1)], verbose=False)


@case
def log_from_a_callback(lab):
    class Logs(lab.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.log("from_callback", float(trainer.current_epoch))

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.log("outputs", outputs["loss"])

        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("val_end", 2.0, prog_bar=True)

    class Reads(lab.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            lab.note("read", trainer.callback_metrics)

        on_validation_epoch_end = on_train_epoch_end

    lab.fit(train=2, val=1, max_epochs=2, watch="", callbacks=[Logs(), Reads()])


@cases(**{hook: {"hook": hook} for hook in HOOKS if hook not in ("on_exception",) and "predict" not in hook
          and "test" not in hook and "sanity" not in hook})  # fmt: skip
def metrics_read_only_in(lab, hook):
    """Reading in one hook alone: what is seen there must not depend on having looked before."""

    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("t", loss)
            self.log("both", loss, on_epoch=True, prog_bar=True)
            self.log("epoch", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("v", self.loss(batch))
            self.log("vboth", self.loss(batch), on_step=True, prog_bar=True)

        def on_train_epoch_end(self):
            self.log("end", 5.0)

    class Reads(lab.Callback):
        pass

    def read(self, trainer, pl_module, *arguments, **keywords):
        lab.note("read", trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics)

    setattr(Reads, hook, read)
    lab.fit(Logs(), train=3, val=2, max_epochs=2, watch="", callbacks=[Reads()], log_every_n_steps=2)


@case
def log_metrics_without_loggers(lab):
    trainer = lab.trainer(logger=False, max_epochs=1)
    trainer.fit(lab.Module(), loader(3), loader(2))
    lab.end(trainer)


@case
def log_without_a_trainer(lab):
    lab.Module().log("value", 1.0)
    lab.note("nothing")


@case
def log_tensors_in_place(lab):
    """What the user does with a logged tensor afterwards changes nothing."""

    class Logs(lab.Module):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            value = loss.detach()
            self.log("value", value, on_epoch=True)
            value.mul_(0.0)
            return loss

    lab.fit(Logs(), train=2)


@case
def metrics_of_the_call_before_are_gone(lab):
    trainer = lab.fit(train=2, val=1)
    lab.note("validate", trainer.validate(lab.Module(), loader(1), verbose=False))
    lab.note("left", trainer.callback_metrics)
    lab.note("test", trainer.test(lab.Module(), loader(1), verbose=False))
    lab.note("left", trainer.callback_metrics)
    trainer.predict(lab.Module(), loader(1))
    lab.note("left", trainer.callback_metrics)


@case
def validate_returns_what_was_logged(lab):
    class Logs(lab.Module):
        def validation_step(self, batch, batch_idx):
            self.log("step_only", float(batch_idx), on_step=True, on_epoch=False)
            self.log("both", float(batch_idx), on_step=True, on_epoch=True)
            self.log("epoch", float(batch_idx))
            self.log("unlogged", float(batch_idx), logger=False)

        def on_validation_epoch_end(self):
            self.log("end", 3.0)

    trainer = lab.trainer("order metrics")
    lab.note("validate", trainer.validate(Logs(), loader(3), verbose=False))
    lab.end(trainer)
    lab.note("again", trainer.validate(Logs(), loader(2), verbose=False))


@cases(**{f"{loaders},{hook}": {"loaders": loaders, "hook": hook}
          for loaders in (1, 2) for hook in ("validation_step", "on_validation_epoch_start")})  # fmt: skip
def log_in_sanity_check(lab, loaders, hook):
    """No logger hears of a sanity check, nor do steps count on from it; of several loaders nothing shows."""
    trainer = lab.trainer("order metrics", max_epochs=2, num_sanity_val_steps=1)
    module = logging_module(lab, hook, on_epoch=True, **({"on_step": True} if hook == "validation_step" else {}))
    if loaders > 1:
        step = module.validation_step
        module.validation_step = lambda batch, batch_idx, dataloader_idx: step(batch, batch_idx)
    trainer.fit(module, loader(2), [loader(2) for _ in range(loaders)])
    lab.end(trainer)


@case
def fit_again_after_a_refused_one(lab):
    """A share of the validation batches that comes to none is refused each time."""
    trainer = lab.trainer(max_epochs=1, limit_val_batches=0.1)
    for _ in range(2):
        with lab.error("limit_val_batches"):
            trainer.fit(lab.Module(), loader(2), loader(2))
