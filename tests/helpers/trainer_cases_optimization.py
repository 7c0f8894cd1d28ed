"""Cases of `trainer_lab`: what `configure_optimizers` returns, learning rates, overridden steps."""

import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from trainer_lab import case, cases

# ---- what configure_optimizers returns -----------------------------------------------------------------------------


def _sgd(module):
    return SGD(module.parameters(), lr=0.1, momentum=0.5)


_SHAPES = {
    "one": lambda o, s: o,
    "list": lambda o, s: [o],
    "tuple": lambda o, s: (o,),
    "pair_of_lists": lambda o, s: ([o], [s]),
    "pair_with_dict": lambda o, s: ([o], [{"scheduler": s, "interval": "step"}]),
    "pair_without_schedulers": lambda o, s: ([o], []),
    "list_pair": lambda o, s: [[o], [s]],
    "dict": lambda o, s: {"optimizer": o},
    "dict_scheduler": lambda o, s: {"optimizer": o, "lr_scheduler": s},
    "dict_dict": lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step", "frequency": 2}},
    "list_of_dict": lambda o, s: [{"optimizer": o, "lr_scheduler": s}],
    "tuple_of_dict": lambda o, s: ({"optimizer": o, "lr_scheduler": {"scheduler": s}},),
    "none": lambda o, s: None,
}  # fmt: skip


@cases(**{shape: {"shape": shape} for shape in _SHAPES})
def shape(lab, shape):
    class Shaped(lab.Module):
        def configure_optimizers(self):
            optimizer = _sgd(self)
            return _SHAPES[shape](optimizer, StepLR(optimizer, 1, gamma=0.5))

    trainer = lab.fit(Shaped(), train=3, val=1, max_epochs=2, watch="order lr")
    for config in trainer.lr_scheduler_configs:
        lab.note("config", type(config.scheduler).__name__, config.interval, config.frequency, config.monitor,
                 config.name, config.strict, config.reduce_on_plateau)  # fmt: skip


_WRONG = {
    "number": lambda o, s: 3,
    "text": lambda o, s: "sgd",
    "list_of_numbers": lambda o, s: [1, 2],
    "unknown_interval": lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "batch"}},
    "no_scheduler": lambda o, s: {"optimizer": o, "lr_scheduler": {"interval": "epoch"}},
    "plateau_alone": lambda o, s: {"optimizer": o, "lr_scheduler": ReduceLROnPlateau(o)},
    "plateau_without_monitor": lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": ReduceLROnPlateau(o)}},
}


@cases(**{shape: {"shape": shape} for shape in _WRONG})
def shape_wrong(lab, shape):
    class Shaped(lab.Module):
        def configure_optimizers(self):
            optimizer = _sgd(self)
            return _WRONG[shape](optimizer, StepLR(optimizer, 1, gamma=0.5))

    with lab.error():
        lab.fit(Shaped(), train=2, watch="order")


# ---- schedulers ----------------------------------------------------------------------------------------------------


@cases(
    **{
        f"{interval},{frequency},{n}": {"interval": interval, "frequency": frequency, "settings": settings}
        for interval in ("step", "epoch")
        for frequency in (1, 2, 3)
        for n, settings in (
            ("", {}), ("accumulate", {"accumulate_grad_batches": 2}), ("half", {"val_check_interval": 0.5}),
            ("steps", {"max_steps": 5}), ("limit", {"limit_train_batches": 3}),
        )
    }
)  # fmt: skip
def scheduler(lab, interval, frequency, settings):
    class Scheduled(lab.Module):
        def configure_optimizers(self):
            optimizer = _sgd(self)
            config = {"scheduler": ExponentialLR(optimizer, 0.5), "interval": interval, "frequency": frequency}
            return {"optimizer": optimizer, "lr_scheduler": config}

    lab.fit(Scheduled(), train=5, val=1, max_epochs=3, watch="lr", **settings)


@cases(
    **{
        f"{monitor},{interval},{n}": {"monitor": monitor, "interval": interval, "settings": settings}
        for monitor in ("val_loss", "train_loss", "train_epoch", "end")
        for interval in ("epoch", "step")
        for n, settings in (
            ("", {}), ("half", {"val_check_interval": 0.5}), ("every2", {"check_val_every_n_epoch": 2}),
            ("accumulate", {"accumulate_grad_batches": 2}),
        )
        # Lightning steps by a value seen before, or raises before the first validation; we wait for a new one.
        if not (monitor == "val_loss" and (interval == "step" or n in ("half", "every2")))
        and not (interval == "step" and monitor in ("train_epoch", "end"))
    }
)  # fmt: skip
def plateau(lab, monitor, interval, settings):
    class Scheduled(lab.Module):
        def training_step(self, batch, batch_idx):
            # Lightning steps monitored ones last in a batch or an epoch, after the checkpoints; we do before these.
            lab.note("rate", self.optimizers().param_groups[0]["lr"])
            loss = super().training_step(batch, batch_idx)
            self.log("train_epoch", loss, on_step=False, on_epoch=True)
            return loss

        def on_train_epoch_end(self):
            self.log("end", float(self.current_epoch))

        def configure_optimizers(self):
            optimizer = _sgd(self)
            plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": monitor,
                                                            "interval": interval}}  # fmt: skip

    trainer = lab.fit(Scheduled(), train=4, val=2, max_epochs=4, watch="", **settings)
    lab.note("rate", trainer.optimizers[0].param_groups[0]["lr"])


@case
def plateau_by_steps_with_each_validation(lab):
    class Scheduled(lab.Module):
        def training_step(self, batch, batch_idx):
            lab.note("rate", self.optimizers().param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            optimizer = _sgd(self)
            plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.7)
            return [optimizer], [{"scheduler": plateau, "monitor": "val_loss", "interval": "step", "frequency": 2}]

    trainer = lab.fit(Scheduled(), train=6, val=2, max_epochs=2, watch="", val_check_interval=2)
    lab.note("rate", trainer.optimizers[0].param_groups[0]["lr"])


@cases(strict={"strict": True}, loose={"strict": False})
def plateau_without_its_metric(lab, strict):
    class Scheduled(lab.Module):
        def configure_optimizers(self):
            optimizer = _sgd(self)
            config = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "nowhere", "strict": strict}
            return {"optimizer": optimizer, "lr_scheduler": config}

    with lab.error(*(["nowhere", "available"] if strict else [])):
        lab.fit(Scheduled(), train=2, val=1, watch="lr")


@case
def monitor_of_a_scheduler_without_metric_is_ignored(lab):
    class Scheduled(lab.Module):
        def configure_optimizers(self):
            optimizer = _sgd(self)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1), "monitor": "nowhere"}}

    lab.fit(Scheduled(), train=2, val=1, max_epochs=2, watch="lr")


@case
def two_schedulers_of_one_optimizer(lab):
    class Scheduled(lab.Module):
        def training_step(self, batch, batch_idx):
            lab.note("rate", self.optimizers().param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            optimizer = _sgd(self)
            return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step", "name": "by_step"},
                                 {"scheduler": ReduceLROnPlateau(optimizer, patience=0, factor=0.1, threshold=0.9),
                                  "monitor": "val_loss"}]  # fmt: skip

    trainer = lab.fit(Scheduled(), train=3, val=1, max_epochs=3, watch="")
    lab.note("names", [config.name for config in trainer.lr_scheduler_configs])


@case
def one_cycle_over_the_estimated_steps(lab):
    class Scheduled(lab.Module):
        def configure_optimizers(self):
            optimizer = _sgd(self)
            total = self.trainer.estimated_stepping_batches
            return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.2, total_steps=total), "interval": "step"}]

    lab.fit(Scheduled(), train=5, max_epochs=2, accumulate_grad_batches=2, watch="lr")


@case
def several_parameter_groups(lab):
    class Grouped(lab.Module):
        def configure_optimizers(self):
            optimizer = Adam([{"params": [self.layer.weight], "lr": 0.1}, {"params": [self.layer.bias]}], lr=0.01)
            return [optimizer], [LambdaLR(optimizer, [lambda epoch: 0.5**epoch, lambda epoch: 1.0])]

    lab.fit(Grouped(), train=3, max_epochs=2, watch="lr")


@case
def learning_rate_reads(lab):
    """`lr_schedulers()` and `optimizers()` with automatic optimization."""

    class Reads(lab.Module):
        def configure_optimizers(self):
            optimizer = _sgd(self)
            return [optimizer], [StepLR(optimizer, 1)]

        def training_step(self, batch, batch_idx):
            lab.note("read", self.lr_schedulers().get_last_lr(), self.optimizers().param_groups[0]["lr"],
                     isinstance(self.optimizers(), SGD),
                     type(self.optimizers(use_pl_optimizer=False)).__name__)  # fmt: skip
            return self.loss(batch)

    lab.fit(Reads(), train=2, max_epochs=2)


@case
def no_schedulers(lab):
    class Reads(lab.Module):
        def training_step(self, batch, batch_idx):
            lab.note("read", self.lr_schedulers())
            return self.loss(batch)

    lab.fit(Reads(), train=1)


@cases(plain={}, clip={"settings": {"gradient_clip_val": 0.1}})
def lbfgs(lab, settings=()):
    class Newton(lab.Module):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=3)

    lab.fit(Newton(), train=3, val=1, max_epochs=2, watch="order metrics", **dict(settings))


# ---- overridden parts of a step ------------------------------------------------------------------------------------


def _step_by_closure(self, epoch, batch_idx, optimizer, optimizer_closure):
    optimizer.step(closure=optimizer_closure)


def _step_after_closure(self, epoch, batch_idx, optimizer, optimizer_closure):
    loss = optimizer_closure()
    self.noted("closure", loss)
    optimizer.step()


def _step_every_second(self, epoch, batch_idx, optimizer, optimizer_closure):
    if batch_idx % 2 == 0:
        optimizer.step(closure=optimizer_closure)
    else:
        optimizer_closure()


def _warm_up(self, epoch, batch_idx, optimizer, optimizer_closure):
    optimizer.step(closure=optimizer_closure)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 4)


def _clear_nothing(self, epoch, batch_idx, optimizer):
    self.noted("zero", epoch, batch_idx)


def _clear_to_zero(self, epoch, batch_idx, optimizer):
    self.noted("zero", epoch, batch_idx)
    optimizer.zero_grad(set_to_none=False)


def _half(self, loss):
    self.noted("backward", loss)
    (loss * 0.5).backward()


def _half_with_extras(self, loss, *args, **kwargs):
    (loss * 0.5).backward(*args, **kwargs)


def _every_second(self, scheduler, metric):
    self.noted("scheduler", metric, type(scheduler).__name__)
    if self.current_epoch % 2 == 0:
        scheduler.step()


def _clip(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
    self.noted("clip", gradient_clip_val, gradient_clip_algorithm)
    self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")


def _clip_by_default(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
    self.noted("clip", gradient_clip_val, gradient_clip_algorithm)
    self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


_OVERRIDES = {
    "step_by_closure": ("optimizer_step", _step_by_closure),
    "step_after_closure": ("optimizer_step", _step_after_closure),
    "step_every_second": ("optimizer_step", _step_every_second),
    "warm_up": ("optimizer_step", _warm_up),
    "clear_nothing": ("optimizer_zero_grad", _clear_nothing),
    "clear_to_zero": ("optimizer_zero_grad", _clear_to_zero),
    "backward": ("backward", _half),
    "backward_with_extras": ("backward", _half_with_extras),
    "scheduler": ("lr_scheduler_step", _every_second),
    "clip": ("configure_gradient_clipping", _clip),
    "clip_by_default": ("configure_gradient_clipping", _clip_by_default),
}


@cases(**{f"{name},{n}": {"name": name, "settings": settings} for name in _OVERRIDES
          for n, settings in (("", {}), ("accumulate", {"accumulate_grad_batches": 2}))},
       **{f"{name},clip": {"name": name, "settings": {"gradient_clip_val": 0.2}} for name in _OVERRIDES
          if "backward" not in name and name != "clip"},
       **{f"{name},clip_value": {"name": name, "settings": {"gradient_clip_val": 0.05,
                                                            "gradient_clip_algorithm": "value"}}
          for name in ("clip_by_default", "step_by_closure")})  # fmt: skip
def overridden(lab, name, settings):
    class Overridden(lab.Module):
        def noted(self, *values):
            lab.note(*values)

        def configure_optimizers(self):
            optimizer = _sgd(self)
            return [optimizer], [ExponentialLR(optimizer, 0.5)]

    method, function = _OVERRIDES[name]
    setattr(Overridden, method, function)
    lab.fit(Overridden(), train=5, val=1, max_epochs=2, watch="order lr", **settings)


@case
def overridden_by_calling_super(lab):
    class Overridden(lab.Module):
        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)

        def optimizer_zero_grad(self, *args, **kwargs):
            super().optimizer_zero_grad(*args, **kwargs)

        def backward(self, loss, *args, **kwargs):
            super().backward(loss, *args, **kwargs)

        def lr_scheduler_step(self, *args, **kwargs):
            super().lr_scheduler_step(*args, **kwargs)

        def configure_gradient_clipping(self, *args, **kwargs):
            super().configure_gradient_clipping(*args, **kwargs)

        def configure_optimizers(self):
            optimizer = _sgd(self)
            return [optimizer], [ExponentialLR(optimizer, 0.5)]

    lab.fit(Overridden(), train=3, max_epochs=2, watch="order lr", gradient_clip_val=0.1)


@case
def returned_none_with_an_overridden_step(lab):
    class Overridden(lab.Module):
        optimizer_step = _step_by_closure

        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else self.loss(batch)

    lab.fit(Overridden(), train=3, watch="order")
