"""Cases of `trainer_lab`: windows, clipping, what a step returns; modes, flags, exceptions."""

import torch
from trainer_lab import case, cases, loader

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


@case
def modes_around_a_prediction(lab):
    """The module is put into evaluation mode by a hook, and gets its own mode back without one."""

    class Notes(lab.Module):
        def predict_step(self, batch, batch_idx):
            return lab.note("training", self.training)

        def on_predict_model_eval(self):
            lab.note("eval")
            super().on_predict_model_eval()

        def on_predict_model_train(self):
            lab.note("train")

    module = Notes()
    lab.trainer().predict(module, loader(1))
    lab.note("after", module.training)
