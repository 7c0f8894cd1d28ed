"""Cases of `trainer_lab`: how long a fit lasts, when it validates, and what may stop it."""

import datetime

import torch
from torch.utils.data import DataLoader
from trainer_lab import SizedStream, Stream, case, cases, loader

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
    # The same data twice: Lightning validates on as many batches of the validation loader.
    trainer.fit(Notes(), loader(4, shuffle=True), loader(4))
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
