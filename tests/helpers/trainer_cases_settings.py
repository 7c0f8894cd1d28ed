"""Cases of `trainer_lab`: settings, what they imply, reloading, and what a call needs."""

import torch
from trainer_lab import Rows, case, cases, loader

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


@cases(
    plain={"num_sanity_val_steps": 0},
    every2={"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2},
    every3_sanity={"num_sanity_val_steps": 1, "check_val_every_n_epoch": 3},
    every2_reload1={"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2, "reload_dataloaders_every_n_epochs": 1},
    every2_reload2={"num_sanity_val_steps": 1, "check_val_every_n_epoch": 2, "reload_dataloaders_every_n_epochs": 2},
    every3_reload2={"num_sanity_val_steps": 0, "check_val_every_n_epoch": 3, "reload_dataloaders_every_n_epochs": 2},
    over_epochs={"num_sanity_val_steps": 0, "check_val_every_n_epoch": None, "val_check_interval": 3},
    twice_reload1={"num_sanity_val_steps": 0, "val_check_interval": 0.5, "reload_dataloaders_every_n_epochs": 1},
)
def when_loaders_are_asked_for(lab, **settings):
    class Gives(lab.Module):
        def train_dataloader(self):
            lab.note("train_dataloader", self.trainer.current_epoch)
            return loader(2)

        def val_dataloader(self):
            lab.note("val_dataloader", self.trainer.current_epoch)
            return loader(1)

    trainer = lab.trainer("order", max_epochs=6, **settings)
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
