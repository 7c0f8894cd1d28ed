"""Cases of `trainer_lab`: manual optimization, and number formats."""

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from trainer_lab import case, cases, loader

# ---- manual optimization -------------------------------------------------------------------------------------------


def manual(lab, step, optimizers=1, schedulers=0):
    """A module that steps for itself by `step(module, batch, batch_idx)`; a second optimizer has its second half."""

    class Manual(lab.Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.second = torch.nn.Linear(1, 1)
            with torch.no_grad():
                self.second.weight.fill_(0.75)
                self.second.bias.fill_(-0.5)

        def training_step(self, batch, batch_idx):
            return step(self, batch, batch_idx)

        def both(self, batch):
            return (self.second(self.layer(batch)) - 1).square().mean()

        def configure_optimizers(self):
            made = [SGD(self.layer.parameters(), lr=0.1), SGD(self.second.parameters(), lr=0.2)][:optimizers]
            if schedulers:
                return made, [StepLR(optimizer, 1, gamma=0.5) for optimizer in made[:schedulers]]
            return made if optimizers > 1 else made[0]

    return Manual()


def _plain_step(module, batch, batch_idx):
    optimizer = module.optimizers()
    optimizer.zero_grad()
    loss = module.loss(batch)
    module.manual_backward(loss)
    optimizer.step()
    module.log("manual", loss, on_epoch=True)
    return loss


def _no_return(module, batch, batch_idx):
    _plain_step(module, batch, batch_idx)


def _by_dict(module, batch, batch_idx):
    return {"loss": _plain_step(module, batch, batch_idx), "extra": 2.0}


def _every_second_batch(module, batch, batch_idx):
    module.manual_backward(module.loss(batch) / 2)
    if batch_idx % 2 == 1:
        module.optimizers().step()
        module.optimizers().zero_grad()


def _clipped(module, batch, batch_idx):
    optimizer = module.optimizers()
    optimizer.zero_grad()
    module.manual_backward(module.loss(batch))
    module.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
    optimizer.step()


def _two(module, batch, batch_idx):
    first, second = module.optimizers()
    module.toggle_optimizer(first)
    _note_gradients(module, "first")
    first.zero_grad()
    module.manual_backward(module.both(batch))
    first.step()
    module.untoggle_optimizer(first)
    module.toggle_optimizer(second)
    _note_gradients(module, "second")
    second.zero_grad()
    module.manual_backward(module.both(batch))
    second.step()
    module.untoggle_optimizer(second)
    _note_gradients(module, "none")


def _note_gradients(module, name):
    module.noted(name, [parameter.requires_grad for parameter in module.parameters()])


def _two_by_context(module, batch, batch_idx):
    for optimizer in module.optimizers():
        with optimizer.toggle_model():
            _note_gradients(module, "in")
            module.manual_backward(module.both(batch))
            optimizer.step()
            optimizer.zero_grad()


def _scheduled(module, batch, batch_idx):
    _plain_step(module, batch, batch_idx)
    scheduler = module.lr_schedulers()
    if batch_idx == 1:
        scheduler.step()


def _two_scheduled(module, batch, batch_idx):
    for optimizer, scheduler in zip(module.optimizers(), module.lr_schedulers(), strict=True):
        optimizer.zero_grad()
        module.manual_backward(module.both(batch))
        optimizer.step()
        if module.trainer.is_last_batch:
            scheduler.step()


def _with_closure(module, batch, batch_idx):
    optimizer = module.optimizers()

    def closure():
        loss = module.loss(batch)
        optimizer.zero_grad()
        module.manual_backward(loss)
        return loss

    module.noted("returned", optimizer.step(closure=closure))


def _raw_optimizer(module, batch, batch_idx):
    optimizer = module.optimizers(use_pl_optimizer=False)
    optimizer.zero_grad()
    module.manual_backward(module.loss(batch))
    optimizer.step()


def _no_step(module, batch, batch_idx):
    module.log("nothing", 1.0)


_MANUAL = {
    "plain": (_plain_step, 1, 0), "no_return": (_no_return, 1, 0), "dict": (_by_dict, 1, 0),
    "every_second": (_every_second_batch, 1, 0), "clipped": (_clipped, 1, 0), "two": (_two, 2, 0),
    "two_by_context": (_two_by_context, 2, 0), "scheduled": (_scheduled, 1, 1), "two_scheduled": (_two_scheduled, 2, 2),
    "closure": (_with_closure, 1, 0), "raw_optimizer": (_raw_optimizer, 1, 0), "no_step": (_no_step, 1, 0),
}  # fmt: skip


@cases(**{f"{name},{n}": {"name": name, "settings": settings} for name in _MANUAL
          for n, settings in (("", {}), ("steps", {"max_steps": 3}), ("log2", {"log_every_n_steps": 2}))})  # fmt: skip
def manually(lab, name, settings):
    step, optimizers, schedulers = _MANUAL[name]
    module = manual(lab, step, optimizers, schedulers)
    type(module).noted = lambda self, *values: lab.note(*values)

    class Outputs(lab.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            lab.note("outputs", outputs)

    settings = {"max_epochs": 2, **settings}
    if settings.get("max_steps") and name in ("raw_optimizer", "no_step"):
        settings.pop("max_steps")
    lab.fit(module, train=3, val=1, watch="order lr metrics", callbacks=[Outputs()], **settings)


@cases(clip={"gradient_clip_val": 0.1}, accumulate={"accumulate_grad_batches": 2})
def manual_wrong(lab, **settings):
    with lab.error("manual optimization"):
        lab.fit(manual(lab, _plain_step), **settings)


@case
def manual_backward_needs_manual_optimization(lab):
    class Manual(lab.Module):
        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))

    with lab.error("automatic_optimization"):
        lab.fit(Manual())


@case
def toggling_leaves_frozen_parameters_alone(lab):
    def step(module, batch, batch_idx):
        module.layer.bias.requires_grad = False
        _two(module, batch, batch_idx)

    module = manual(lab, step, 2)
    type(module).noted = lambda self, *values: lab.note(*values)
    lab.fit(module, train=2)


# ---- precision -----------------------------------------------------------------------------------------------------


@cases(
    **{
        f"{precision},{n}": {"precision": precision, "settings": settings}
        for precision in ("64-true", "bf16-mixed", "32-true", 64, 32, "64", "32", "bf16")
        for n, settings in (("", {}), ("clip", {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2}))
    }
)
def precision(lab, precision, settings):
    class Kinds(lab.Module):
        def training_step(self, batch, batch_idx):
            output = self.layer(batch)
            lab.note("kinds", str(batch.dtype), str(output.dtype), str(self.layer.weight.dtype), str(self.dtype),
                     str(torch.zeros(()).dtype))  # fmt: skip
            loss = (output.to(self.layer.weight.dtype) - 1).square().mean()
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            lab.note("kinds", str(batch.dtype), str(self.layer(batch).dtype), str(torch.zeros(()).dtype))

        def predict_step(self, batch, batch_idx):
            return self.layer(batch)

    torch.set_default_dtype(torch.float32)
    trainer = lab.fit(Kinds(), train=3, val=1, watch="", precision=precision, **settings)
    lab.note("predict", [str(output.dtype) for output in trainer.predict(Kinds(), loader(1))])
