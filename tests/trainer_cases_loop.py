"""Cases of `trainer_lab`: how long a fit lasts, when it validates, what may stop it, windows and steps."""

import datetime

import torch
from torch.utils.data import DataLoader
from trainer_lab import Rows, SizedStream, Stream, case, cases, loader

# ---- how long ------------------------------------------------------------------------------------------------------


@cases(
    epochs2={"max_epochs": 2},
    epochs0={"max_epochs": 0},
    steps3={"max_epochs": 5, "max_steps": 3},
    steps4={"max_epochs": 5, "max_steps": 4},
    steps5={"max_epochs": -1, "max_steps": 5},
    steps0={"max_epochs": 3, "max_steps": 0},
    steps_alone={"max_epochs": None, "max_steps": 6},
    steps_accumulate={"max_epochs": 5, "max_steps": 3, "accumulate_grad_batches": 3},
    steps_accumulate_end={"max_epochs": 5, "max_steps": 2, "accumulate_grad_batches": 2},
    min_epochs={"max_epochs": 3, "min_epochs": 2},
    min_epochs_above={"max_epochs": 1, "min_epochs": 3},
    min_steps={"max_epochs": 2, "min_steps": 20},
)
def length(lab, **settings):
    trainer = lab.fit(watch="order", val=2, **settings)
    lab.note("limits", trainer.max_epochs, trainer.min_epochs, trainer.max_steps, trainer.min_steps)


@cases(
    plain={},
    min_epochs={"min_epochs": 2},
    min_steps={"min_steps": 6},
    min_steps_only_reached={"min_steps": 4},
    both={"min_epochs": 2, "min_steps": 9},
)
def stop_in_training_step(lab, **settings):
    class Stops(lab.Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    lab.fit(Stops(), watch="order", val=2, max_epochs=4, **settings)


_STOPPING = (
    "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_after_backward",
    "on_train_batch_end", "on_validation_start", "on_validation_batch_end", "on_validation_epoch_end",
    "on_validation_end", "on_train_epoch_end", "on_sanity_check_end",
)  # fmt: skip


@cases(**{f"{hook},{n}": {"hook": hook, "settings": s} for hook in _STOPPING for n, s in
          (("end", {}), ("half", {"val_check_interval": 0.5}), ("min2", {"min_epochs": 2}))})  # fmt: skip
def stop_in(lab, hook, settings):
    class Stops(lab.Callback):
        pass

    def stop(self, trainer, pl_module, *arguments):
        trainer.should_stop = True

    setattr(Stops, hook, stop)
    lab.fit(watch="order", val=2, max_epochs=3, num_sanity_val_steps=1, callbacks=[Stops()], **settings)


@case
def stop_set_before_fit_is_forgotten(lab):
    trainer = lab.trainer(max_epochs=2, num_sanity_val_steps=0, watch="order")
    trainer.should_stop = True
    trainer.fit(lab.Module(), loader(2))
    lab.end(trainer)


@cases(
    string={"max_time": "00:00:00:00"},
    dictionary={"max_time": {"seconds": 0}},
    delta={"max_time": datetime.timedelta(seconds=0)},
)
def no_time(lab, max_time):
    lab.fit(watch="order", max_epochs=3, max_time=max_time)


@cases(
    true={"fast_dev_run": True},
    two={"fast_dev_run": 2},
    more_than_there_is={"fast_dev_run": 7},
    with_limits={"fast_dev_run": 1, "limit_train_batches": 3, "limit_val_batches": 0, "val_check_interval": 2},
    accumulate={"fast_dev_run": 3, "accumulate_grad_batches": 2},
)
def fast_dev_run(lab, **settings):
    trainer = lab.trainer(watch="order metrics flags counts", **settings)
    trainer.fit(lab.Module(), loader(4), loader(3))
    lab.end(trainer)
    lab.note("settings", trainer.max_epochs, trainer.max_steps, trainer.num_sanity_val_steps, trainer.fast_dev_run,
             trainer.num_training_batches, trainer.limit_train_batches, trainer.limit_val_batches,
             trainer.val_check_interval, trainer.check_val_every_n_epoch, trainer.log_every_n_steps)  # fmt: skip
    lab.note("test", trainer.test(lab.Module(), loader(4), verbose=False))
    lab.note("predict", trainer.predict(lab.Module(), loader(4)))


@cases(
    count={"overfit_batches": 2},
    fraction={"overfit_batches": 0.5},
    one={"overfit_batches": 1},
    all={"overfit_batches": 1.0},
)
def overfit(lab, **settings):
    class Notes(lab.Module):
        def training_step(self, batch, batch_idx):
            lab.note("batch", batch.sum())
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            lab.note("validation batch", batch.sum())
            return super().validation_step(batch, batch_idx)

    trainer = lab.trainer(max_epochs=2, num_sanity_val_steps=0, watch="order", **settings)
    trainer.fit(Notes(), loader(4, shuffle=True), loader(3, offset=1.0))
    lab.note("batches", trainer.num_training_batches, trainer.num_val_batches)
    lab.end(trainer)


@case
def overfit_without_validation_loader(lab):
    trainer = lab.trainer(max_epochs=1, watch="order", overfit_batches=2)
    trainer.fit(lab.Module(), loader(4))
    lab.end(trainer)


# ---- limits --------------------------------------------------------------------------------------------------------


@cases(
    count={"limit_train_batches": 2, "limit_val_batches": 1},
    fraction={"limit_train_batches": 0.5, "limit_val_batches": 0.7},
    more={"limit_train_batches": 50, "limit_val_batches": 50},
    one={"limit_train_batches": 1, "limit_val_batches": 1},
    whole={"limit_train_batches": 1.0, "limit_val_batches": 1.0},
    no_training={"limit_train_batches": 0},
    no_training_fraction={"limit_train_batches": 0.0},
    no_validation={"limit_val_batches": 0},
    no_validation_fraction={"limit_val_batches": 0.0},
    odd={"limit_train_batches": 0.67},
)
def limits(lab, **settings):
    lab.fit(watch="order flags counts", train=5, val=3, max_epochs=2, **settings)


@cases(train={"limit_train_batches": 0.1}, val={"limit_val_batches": 0.1})
def limit_too_small(lab, **settings):
    with lab.error():
        lab.fit(train=4, val=4, **settings)


@cases(
    stream={"kind": Stream, "settings": {}},
    sized={"kind": SizedStream, "settings": {}},
    stream_limit={"kind": Stream, "settings": {"limit_train_batches": 2}},
    stream_limit_above={"kind": Stream, "settings": {"limit_train_batches": 9}},
    stream_steps={"kind": Stream, "settings": {"max_steps": 6}},
    stream_interval={"kind": Stream, "settings": {"val_check_interval": 2}},
    stream_accumulate={"kind": Stream, "settings": {"accumulate_grad_batches": 2}},
    stream_over_epochs={"kind": Stream, "settings": {"val_check_interval": 3, "check_val_every_n_epoch": None}},
    sized_fraction={"kind": SizedStream, "settings": {"limit_train_batches": 0.4, "val_check_interval": 0.5}},
)
def iterable_data_set(lab, kind, settings):
    trainer = lab.trainer(watch="order counts", **{"max_epochs": 2, "num_sanity_val_steps": 1, **settings})
    trainer.fit(lab.Module(), DataLoader(kind(10), batch_size=2), DataLoader(kind(4), batch_size=2))
    lab.end(trainer)
    lab.note("steps", trainer.estimated_stepping_batches)


@cases(
    train={"limit_train_batches": 0.5},
    val={"limit_val_batches": 0.5},
    interval={"val_check_interval": 0.5},
)
def fraction_of_unknown_length(lab, **settings):
    with lab.error("IterableDataset" if "val_check_interval" in settings else "int"):
        trainer = lab.trainer(max_epochs=1, num_sanity_val_steps=0, **settings)
        trainer.fit(lab.Module(), DataLoader(Stream(8), batch_size=2), DataLoader(Stream(4), batch_size=2))


# ---- when to validate ----------------------------------------------------------------------------------------------


@cases(
    every2={"val_check_interval": 2},
    every3={"val_check_interval": 3},
    every1={"val_check_interval": 1},
    last={"val_check_interval": 5},
    half={"val_check_interval": 0.5},
    third={"val_check_interval": 0.34},
    small={"val_check_interval": 0.01},
    whole={"val_check_interval": 1.0},
    epochs2={"check_val_every_n_epoch": 2},
    epochs2_half={"check_val_every_n_epoch": 2, "val_check_interval": 0.5},
    over_epochs={"check_val_every_n_epoch": None, "val_check_interval": 3},
    over_epochs_alone={"check_val_every_n_epoch": None},
    over_epochs_long={"check_val_every_n_epoch": None, "val_check_interval": 7},
    over_epochs_never={"check_val_every_n_epoch": None, "val_check_interval": 70},
    accumulate={"val_check_interval": 3, "accumulate_grad_batches": 2},
    steps={"val_check_interval": 2, "max_steps": 4},
)
def validation(lab, **settings):
    lab.fit(watch="order metrics", train=5, val=2, max_epochs=3, **settings)


@cases(above={"val_check_interval": 6}, none_float={"val_check_interval": 0.5, "check_val_every_n_epoch": None},
)  # fmt: skip
def validation_interval_wrong(lab, **settings):
    with lab.error("val_check_interval"):
        lab.fit(train=5, val=2, **settings)


@cases(
    **{
        f"{steps}{name}": {"steps": steps, "settings": settings}
        for steps in (0, 1, 2, 9, -1)
        for name, settings in (("", {}), (",limit", {"limit_val_batches": 1}))
    }
)
def sanity(lab, steps, settings):
    lab.fit(watch="order flags counts metrics", train=2, val=3, num_sanity_val_steps=steps, **settings)


@case
def sanity_check_leaves_random_numbers_alone(lab):
    class Draws(lab.Module):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", torch.rand(()))

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch) * torch.rand(())
            self.log("train_loss", loss)
            return loss

    torch.manual_seed(3)
    lab.fit(Draws(), val=3, num_sanity_val_steps=2)


@cases(no_step={"loaders": True}, no_loader={"loaders": False})
def no_validation(lab, loaders):
    class Trains(lab.Module):
        pass

    module = Trains()
    if loaders:
        module.validation_step = None
    trainer = lab.trainer(max_epochs=1, watch="order")
    trainer.fit(module, loader(2), loader(2) if loaders else None)
    lab.end(trainer)


@cases(two={"count": 2}, three={"count": 3})
def several_validation_loaders(lab, count):
    trainer = lab.trainer(max_epochs=1, num_sanity_val_steps=0, log_every_n_steps=1, watch="order metrics")
    trainer.fit(lab.Module(), loader(2), [loader(1 + index, offset=index) for index in range(count)])
    lab.end(trainer)
    lab.note("validate", trainer.validate(lab.Module(), [loader(1 + index) for index in range(count)], verbose=False))


@cases(
    limit1={"limit_val_batches": 1},
    half={"limit_val_batches": 0.5},
    sanity={"num_sanity_val_steps": 3},
)
def several_validation_loaders_limited(lab, **settings):
    trainer = lab.trainer(**{"max_epochs": 1, "num_sanity_val_steps": 0, "watch": "order counts", **settings})
    trainer.fit(lab.Module(), loader(2), [loader(2), loader(4)])
    lab.end(trainer)


# ---- windows, clipping, what a step returns ------------------------------------------------------------------------


@cases(
    **{
        f"{n}of{train}": {"n": n, "train": train}
        for n, train in ((1, 3), (2, 4), (2, 5), (3, 5), (4, 3), (2, 1), (3, 7))
    }
)
def accumulate(lab, n, train):
    lab.fit(watch="order metrics", train=train, val=1, max_epochs=2, accumulate_grad_batches=n)


@case
def accumulate_with_validation_inside_the_window(lab):
    # Our validations never clear what is pending; Lightning's do, so this runs where windows and validations meet.
    lab.fit(watch="order", train=6, val=1, accumulate_grad_batches=2, val_check_interval=2)


@cases(
    norm={"gradient_clip_val": 0.1},
    norm_named={"gradient_clip_val": 0.1, "gradient_clip_algorithm": "norm"},
    value={"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    large={"gradient_clip_val": 100.0},
    zero={"gradient_clip_val": 0.0},
    accumulate={"gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
)
def clipping(lab, **settings):
    lab.fit(train=5, max_epochs=2, **settings)


@cases(norm={"gradient_clip_algorithm": "foo"})
def clipping_wrong(lab, **settings):
    with lab.error("gradient_clip"):
        lab.fit(**settings)


_RETURNED = {
    "tensor": lambda loss: loss,
    "dict": lambda loss: {"loss": loss, "extra": loss * 2},
    "none": lambda loss: None,
    "one_element": lambda loss: loss.reshape(1),
}


@cases(**{f"{kind},{n}": {"kind": kind, "n": n} for kind in _RETURNED for n in (1, 2)})
def returned(lab, kind, n):
    class Returns(lab.Module):
        def training_step(self, batch, batch_idx):
            return _RETURNED[kind](super().training_step(batch, batch_idx))

        def on_train_batch_end(self, outputs, batch, batch_idx):
            lab.note("outputs", outputs)

    lab.fit(Returns(), watch="order", train=3, accumulate_grad_batches=n)


@cases(**{"1": {"skip": (1,)}, "last": {"skip": (4,)}, "first_two": {"skip": (0, 1)}, "all": {"skip": (0, 1, 2, 3, 4)}})
def some_steps_return_none(lab, skip):
    class Returns(lab.Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in skip else super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            lab.note("outputs", outputs)

    for n in (1, 2):
        lab.fit(Returns(), watch="order metrics", train=5, val=1, max_epochs=2, accumulate_grad_batches=n)


@cases(string={"value": "loss"}, number={"value": 0.5}, dict_without_loss={"value": {"x": 1}}, pair={"value": (1, 2)})
def returned_wrong(lab, value):
    class Returns(lab.Module):
        def training_step(self, batch, batch_idx):
            return value

    with lab.error("loss" if isinstance(value, dict) else ""):
        lab.fit(Returns(), train=2)


@case
def steps_without_batch_idx(lab):
    class Short(lab.Module):
        def training_step(self, batch):
            return self.loss(batch)

        def validation_step(self, batch):
            self.log("val_loss", self.loss(batch))

        def test_step(self, batch):
            self.log("test_loss", self.loss(batch))

        def predict_step(self, batch):
            return self(batch)

    trainer = lab.fit(Short(), val=2)
    lab.note("test", trainer.test(Short(), loader(2), verbose=False))
    lab.note("predict", trainer.predict(Short(), loader(1)))


@case
def several_loaders_need_the_index(lab):
    class Short(lab.Module):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch))

    with lab.error("dataloader_idx"):
        lab.trainer().validate(Short(), [loader(1), loader(1)], verbose=False)


@cases(**{str(at): {"at": at} for at in (0, 1, 3)})
def batch_start_returns_minus_one(lab, at):
    class Ends(lab.Module):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == at else None

    lab.fit(Ends(), watch="order metrics", train=4, val=1, max_epochs=2)


@case
def batch_start_returns_minus_one_within_a_window(lab):
    class Ends(lab.Module):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 3 else None

    lab.fit(Ends(), watch="order metrics", train=5, val=1, max_epochs=2, accumulate_grad_batches=2)


# ---- modes, flags, exceptions --------------------------------------------------------------------------------------


@case
def flags_in_every_hook(lab):
    trainer = lab.fit(watch="order flags", val=2, max_epochs=2, num_sanity_val_steps=1)
    trainer.validate(lab.Module(), loader(1), verbose=False)
    trainer.test(lab.Module(), loader(1), verbose=False)
    trainer.predict(lab.Module(), loader(1))
    lab.end(trainer)


@case
def training_modes_come_back(lab):
    class Norm(lab.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)
            self.frozen = torch.nn.BatchNorm1d(2)
            self.frozen.eval()

        def loss(self, batch):
            lab.note("modes", self.training, self.norm.training, self.frozen.training)
            return super().loss(self.frozen(self.norm(batch)))

    module = Norm()
    trainer = lab.fit(module, val=1, num_sanity_val_steps=1, val_check_interval=0.5)
    module.eval()
    lab.note("validate", trainer.validate(module, loader(1), verbose=False))
    lab.note("modes", module.training, module.norm.training, module.frozen.training)


_RAISING = (
    "setup", "on_fit_start", "on_sanity_check_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start",
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end",
    "on_validation_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end",
    "on_validation_end", "on_train_epoch_end", "on_train_end", "on_fit_end", "teardown",
)  # fmt: skip


@cases(**{hook: {"hook": hook} for hook in _RAISING})
def exception_in(lab, hook):
    class Raises(lab.Callback):
        pass

    def fail(self, trainer, pl_module, *arguments, **keywords):
        raise ValueError("boom")

    setattr(Raises, hook, fail)
    trainer = lab.trainer("order flags", callbacks=[Raises()], max_epochs=1, num_sanity_val_steps=1)
    with lab.error("boom"):
        trainer.fit(lab.Module(), loader(2), loader(1))
    lab.note(
        "end",
        trainer.global_step,
        trainer.current_epoch,
        trainer.state.status,
        trainer.state.fn,
        trainer.should_stop,
        trainer.interrupted,
        trainer.training,
        trainer.validating,
        trainer.state.stage,
    )


@cases(**{name: {"method": name} for name in ("training_step", "validation_step", "configure_optimizers",
                                             "train_dataloader", "val_dataloader", "prepare_data")})  # fmt: skip
def exception_in_the_module(lab, method):
    class Raises(lab.Module):
        def train_dataloader(self):
            return loader(2)

        val_dataloader = train_dataloader

    def fail(self, *arguments):
        raise ValueError("boom")

    setattr(Raises, method, fail)
    trainer = lab.trainer("order flags", max_epochs=1, num_sanity_val_steps=1)
    with lab.error("boom"):
        trainer.fit(Raises())
    lab.note("flags", trainer.interrupted, trainer.state.status, trainer.state.stage)


@cases(anomaly={})
def anomaly_raises(lab):
    class Diverges(lab.Module):
        def training_step(self, batch, batch_idx):
            return (self.loss(batch) * 0).sqrt() * 0 + (self.layer(batch).sum() * 0).sqrt()

    with lab.error("nan"):
        lab.fit(Diverges(), detect_anomaly=True)


@cases(on={"inference_mode": True}, off={"inference_mode": False})
def inference_mode(lab, inference_mode):
    class Looks(lab.Module):
        def look(self):
            lab.note("inference", torch.is_inference_mode_enabled(), torch.is_grad_enabled())

        def validation_step(self, batch, batch_idx):
            self.look()

        def test_step(self, batch, batch_idx):
            self.look()

        def predict_step(self, batch, batch_idx):
            self.look()

        def on_validation_start(self):
            self.look()

        def on_validation_end(self):
            self.look()

        def on_validation_model_train(self):
            self.look()
            super().on_validation_model_train()

    trainer = lab.fit(Looks(), train=1, val=1, num_sanity_val_steps=1, inference_mode=inference_mode)
    trainer.validate(Looks(), loader(1), verbose=False)
    trainer.test(Looks(), loader(1), verbose=False)
    trainer.predict(Looks(), loader(1))


# ---- settings ------------------------------------------------------------------------------------------------------


@cases(
    defaults={},
    some={"max_epochs": 3, "max_steps": 9, "min_epochs": 2, "val_check_interval": 0.25, "limit_val_batches": 3},
    time={"max_time": "00:00:01:00"},
    min_steps={"min_steps": 3},
    none={"max_epochs": None, "gradient_clip_val": 1.0, "accumulate_grad_batches": 2},
    unlimited={"max_epochs": -1},
)
def settings_are_attributes(lab, **settings):
    trainer = lab.trainer(**settings)
    names = ("max_steps", "min_steps", "limit_train_batches", "limit_val_batches",
             "limit_test_batches", "limit_predict_batches", "fast_dev_run", "overfit_batches", "val_check_interval",
             "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps", "accumulate_grad_batches",
             "gradient_clip_val", "gradient_clip_algorithm", "world_size", "global_rank", "local_rank", "num_devices",
             "num_nodes", "is_global_zero", "current_epoch", "global_step", "should_stop", "training", "validating",
             "testing", "predicting", "sanity_checking", "interrupted", "callback_metrics", "logged_metrics",
             "progress_bar_metrics", "is_last_batch", "num_training_batches", "num_val_batches", "num_test_batches",
             "num_predict_batches", "num_sanity_val_batches", "optimizers", "lr_scheduler_configs", "ckpt_path",
             "train_dataloader", "val_dataloaders", "test_dataloaders", "predict_dataloaders", "checkpoint_callback",
             "checkpoint_callbacks", "early_stopping_callback", "early_stopping_callbacks", "lightning_module", "model",
             "enable_validation", "evaluating")  # fmt: skip
    for name in names:
        lab.note(name, getattr(trainer, name))


@cases(
    max_epochs={"max_epochs": -2},
    max_steps={"max_steps": -3},
    fast_dev_run={"fast_dev_run": -1},
    fast_dev_run_float={"fast_dev_run": 1.5},
    limit_train={"limit_train_batches": 1.5},
    limit_val={"limit_val_batches": -1},
    overfit={"overfit_batches": -0.5},
    val_check_interval={"val_check_interval": 1.5},
    val_check_negative={"val_check_interval": -1},
    reload={"reload_dataloaders_every_n_epochs": -1},
    max_time={"max_time": "one hour"},
    every_n={"check_val_every_n_epoch": 1.5},
    unknown={"max_epoch": 3},
)
def settings_wrong(lab, **settings):
    with lab.error():
        lab.trainer(**settings)


@cases(
    **{
        f"{epochs},{steps},{n},{limit}": {
            "settings": {"max_epochs": epochs, "max_steps": steps, "accumulate_grad_batches": n,
                         "limit_train_batches": limit}
        }
        for epochs, steps, n, limit in (
            (2, -1, 1, 1.0), (3, -1, 2, 1.0), (3, 4, 2, 1.0), (2, 100, 1, 1.0), (-1, 7, 3, 1.0), (-1, -1, 1, 1.0),
            (2, -1, 3, 4), (2, -1, 1, 0.5), (0, -1, 1, 1.0), (1, -1, 9, 1.0), (2, -1, 2, 0),
        )
    }
)  # fmt: skip
def estimated_stepping_batches(lab, settings):
    class Asks(lab.Module):
        def configure_optimizers(self):
            lab.note("estimate", self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

        def on_train_start(self):
            self.trainer.should_stop = True  # the unlimited ones would never end

    trainer = lab.trainer(num_sanity_val_steps=0, **settings)
    trainer.fit(Asks(), loader(5))


@cases(every1={"n": 1}, every2={"n": 2}, never={"n": 0})
def reload(lab, n):
    class Gives(lab.Module):
        def train_dataloader(self):
            lab.note("train_dataloader", self.trainer.current_epoch)
            return loader(2)

        def val_dataloader(self):
            lab.note("val_dataloader", self.trainer.current_epoch)
            return loader(1)

    trainer = lab.trainer("order", reload_dataloaders_every_n_epochs=n, max_epochs=4, num_sanity_val_steps=1)
    trainer.fit(Gives())
    lab.end(trainer)


@case
def loaders_are_attributes(lab):
    trainer = lab.trainer(max_epochs=1, num_sanity_val_steps=0)
    train, val = loader(2), [loader(1), loader(1)]
    trainer.fit(lab.Module(), train, val)
    lab.note(
        "same", trainer.train_dataloader is train, [a is b for a, b in zip(trainer.val_dataloaders, val, strict=True)]
    )
    trainer.test(lab.Module(), test := loader(2), verbose=False)
    lab.note("same", trainer.test_dataloaders is test)
    single = loader(1)
    trainer.validate(lab.Module(), single, verbose=False)
    lab.note("same", trainer.val_dataloaders is single)


class Batches:
    """Iterable, with or without a length, and no DataLoader."""

    def __init__(self, count):
        self.rows = Rows(count)

    def __iter__(self):
        return (self.rows[index][None] for index in range(len(self.rows)))


class SizedBatches(Batches):
    def __len__(self):
        return len(self.rows)


@cases(sized={"kind": SizedBatches}, unsized={"kind": Batches})
def plain_iterables_are_loaders(lab, kind):
    batches = kind(3)
    trainer = lab.trainer("order", max_epochs=1, log_every_n_steps=1)
    trainer.fit(lab.Module(), batches)
    lab.end(trainer)


@case
def fit_again_goes_on(lab):
    trainer = lab.trainer("order", max_epochs=1, num_sanity_val_steps=0)
    module = lab.Module()
    trainer.fit(module, loader(2), loader(1))
    lab.end(trainer)
    trainer.fit(module, loader(2), loader(1))
    lab.end(trainer)
    lab.extend(trainer, 3)
    trainer.fit(module, loader(3), loader(1))
    lab.end(trainer)


@case
def needs_training_step(lab):
    module = lab.Module()
    module.training_step = None
    with lab.error("training_step"):
        lab.fit(module)


@case
def needs_configure_optimizers(lab):
    class Bare(lab.library.LightningModule):
        def training_step(self, batch, batch_idx):
            return None

    with lab.error("configure_optimizers"):
        lab.fit(Bare())


@case
def needs_loaders(lab):
    for method in ("fit", "validate", "test", "predict"):
        with lab.error("dataloader"):
            getattr(lab.trainer(max_epochs=1), method)(lab.Module())


@cases(validate={"method": "validate"}, test={"method": "test"})
def needs_its_step(lab, method):
    module = lab.Module()
    module.validation_step = module.test_step = None
    with lab.error("step"):
        getattr(lab.trainer(), method)(module, loader(1))


@case
def not_a_module(lab):
    with lab.error():
        lab.trainer(max_epochs=1).fit(torch.nn.Linear(2, 1), loader(2))
