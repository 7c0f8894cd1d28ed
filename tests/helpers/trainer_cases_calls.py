"""Cases of `trainer_lab`: validate, test, predict; checkpoints; data modules and their hooks; hyperparameters."""

import torch
from torch.utils.data import DataLoader
from trainer_lab import Rows, case, cases, loader

# ---- validate, test, predict ---------------------------------------------------------------------------------------


@cases(**{f"{method},{count}": {"method": method, "count": count} for method in ("validate", "test", "predict")
          for count in (1, 2)})  # fmt: skip
def evaluate(lab, method, count):
    trainer = lab.trainer("order metrics flags")
    loaders = [loader(2 + index, offset=index) for index in range(count)]
    keywords = {} if method == "predict" else {"verbose": False}
    result = getattr(trainer, method)(lab.Module(), loaders if count > 1 else loaders[0], **keywords)
    lab.note("result", result)
    lab.end(trainer)


@cases(**{f"{method},{limit}": {"method": method, "limit": limit} for method in ("validate", "test", "predict")
          for limit in (0, 1, 0.5, 1.0, 9)})  # fmt: skip
def evaluate_limited(lab, method, limit):
    name = {"validate": "val"}.get(method, method)
    trainer = lab.trainer("order", **{f"limit_{name}_batches": limit})
    keywords = {} if method == "predict" else {"verbose": False}
    lab.note("result", getattr(trainer, method)(lab.Module(), loader(4), **keywords))
    lab.note("counts", getattr(trainer, f"num_{name}_batches"))


@cases(returned={"value": None}, kept={"value": True}, dropped={"value": False})
def return_predictions(lab, value):
    trainer = lab.trainer("order")
    lab.note("result", trainer.predict(lab.Module(), loader(2), return_predictions=value))


@cases(**{name: {"output": output} for name, output in {
    "dict": lambda x: {"y": x, "n": 1}, "list": lambda x: [x, 2], "none": lambda x: None, "text": lambda x: "text",
}.items()})  # fmt: skip
def predict_outputs(lab, output):
    class Predicts(lab.Module):
        def predict_step(self, batch, batch_idx):
            return output(self(batch))

    class Reads(lab.Callback):
        def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            lab.note("outputs", outputs, batch_idx, dataloader_idx)

    lab.note("result", lab.trainer(callbacks=[Reads()]).predict(Predicts(), loader(2)))


@case
def outputs_of_evaluation_steps(lab):
    class Returns(lab.Module):
        def validation_step(self, batch, batch_idx):
            return {"loss": self.loss(batch), "more": [1, 2]}

        def test_step(self, batch, batch_idx):
            return self.loss(batch)

    class Reads(lab.Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            lab.note("outputs", outputs, batch_idx, dataloader_idx)

        on_test_batch_end = on_validation_batch_end

    trainer = lab.trainer(callbacks=[Reads()])
    trainer.validate(Returns(), [loader(1)], verbose=False)
    trainer.test(Returns(), loader(2), verbose=False)


@case
def evaluation_loaders_of_the_module(lab):
    class Gives(lab.Module):
        def val_dataloader(self):
            lab.note("val_dataloader")
            return [loader(1), loader(2)]

        def test_dataloader(self):
            lab.note("test_dataloader")
            return loader(2)

        def predict_dataloader(self):
            lab.note("predict_dataloader")
            return loader(1)

    trainer = lab.trainer("order")
    lab.note("result", trainer.validate(Gives(), verbose=False))
    lab.note("result", trainer.test(Gives(), verbose=False))
    lab.note("result", trainer.predict(Gives()))


@case
def an_empty_loader(lab):
    trainer = lab.trainer("order", max_epochs=1)
    empty = DataLoader(Rows(0), batch_size=2)
    trainer.fit(lab.Module(), loader(2), empty)
    lab.end(trainer)
    lab.note("result", trainer.validate(lab.Module(), empty, verbose=False))
    trainer.fit(lab.Module(), empty, loader(1))
    lab.end(trainer)


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def checkpointing(lab, **arguments):
    return lab.library.ModelCheckpoint(dirpath=lab.folder, filename="{epoch}-{step}", **arguments)


@cases(best={"path": "best"}, last={"path": "last"}, none={"path": None}, file={"path": "epoch=0-step=2.ckpt"})
def evaluate_checkpoint(lab, path):
    class Worse(lab.Module):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", float(self.current_epoch))

        def test_step(self, batch, batch_idx):
            self.log("weight", self.layer.weight.sum())

        def predict_step(self, batch, batch_idx):
            return self.layer.weight.sum()

    saving = checkpointing(lab, monitor="val_loss", save_top_k=2, save_last=True)
    module = Worse()
    trainer = lab.trainer(max_epochs=3, num_sanity_val_steps=0, callbacks=[saving], enable_checkpointing=True)
    trainer.fit(module, loader(2), loader(1))
    path = str(lab.folder / path) if path and "." in path else path
    lab.note("test", trainer.test(dataloaders=loader(1), ckpt_path=path, verbose=False))
    lab.note("path", trainer.ckpt_path and trainer.ckpt_path.split("/")[-1])
    lab.note("predict", trainer.predict(dataloaders=loader(1), ckpt_path=path))
    lab.note("given", trainer.test(module, loader(1), verbose=False, ckpt_path=path))
    lab.note("counters", trainer.global_step, trainer.current_epoch)


@cases(**{f"{method},{path}": {"method": method, "path": path} for method in ("fit", "test")
          for path in ("best", "missing.ckpt")})  # fmt: skip
def checkpoint_is_not_there(lab, method, path):
    trainer = lab.trainer(max_epochs=1)
    path = str(lab.folder / path) if "." in path else path
    with lab.error("best" if path == "best" else ""):
        getattr(trainer, method)(lab.Module(), loader(1), ckpt_path=path)


@case
def last_checkpoint_is_not_there(lab):
    trainer = lab.trainer("order", max_epochs=1, callbacks=[checkpointing(lab)], enable_checkpointing=True)
    trainer.fit(lab.Module(), loader(1), ckpt_path="last")
    lab.end(trainer)


@cases(
    end={"saved": {"max_epochs": 1}, "resumed": {"max_epochs": 3}},
    same={"saved": {"max_epochs": 2}, "resumed": {"max_epochs": 2}},
    middle={"saved": {"max_epochs": 3, "max_steps": 5}, "resumed": {"max_epochs": 3}},
)
def resume(lab, saved, resumed):
    class Scheduled(lab.Module):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    first = lab.trainer("", num_sanity_val_steps=0, logger=False, **saved)
    first.fit(Scheduled(), loader(3), loader(1))
    first.save_checkpoint(lab.folder / "x.ckpt")
    trainer = lab.trainer("order lr", num_sanity_val_steps=0, log_every_n_steps=1, **resumed)
    trainer.fit(Scheduled(), loader(3), loader(1), ckpt_path=lab.folder / "x.ckpt")
    lab.note("end", trainer.global_step, trainer.current_epoch, dict(trainer.lightning_module.state_dict()))


@cases(True_={"only": True}, False_={"only": False})
def saved_keys(lab, only):
    class Adds(lab.Module):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = 5

        def on_load_checkpoint(self, checkpoint):
            lab.note("loaded", checkpoint["mine"])

    class Keeps(lab.Callback):
        def state_dict(self):
            return {"count": 3}

        def load_state_dict(self, state):
            lab.note("state", state)

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            checkpoint["callback"] = 6

        def on_load_checkpoint(self, trainer, pl_module, checkpoint):
            lab.note("hook", checkpoint["callback"])

    trainer = lab.trainer(max_epochs=1, callbacks=[Keeps()])
    trainer.fit(Adds(), loader(1))
    trainer.save_checkpoint(lab.folder / "x.ckpt", weights_only=only)
    file = torch.load(lab.folder / "x.ckpt", weights_only=True)
    # weights alone: we leave `callbacks` out as Lightning does, and its `loops` are in both
    lab.note(
        "keys", sorted(file), file["epoch"], file["global_step"], sorted(file["state_dict"]), file.get("callbacks")
    )
    if not only:
        trainer = lab.trainer("order", max_epochs=2, callbacks=[Keeps()])
        trainer.fit(Adds(), loader(1), ckpt_path=lab.folder / "x.ckpt")


@case
def nothing_to_save_yet(lab):
    with lab.error():
        lab.trainer().save_checkpoint(lab.folder / "x.ckpt")


@cases(strict={"strict": True}, loose={"strict": False})
def strict_loading(lab, strict):
    class More(lab.Module):
        def __init__(self):
            super().__init__()
            self.more = torch.nn.Linear(1, 1)
            self.strict_loading = strict

        def state_dict(self, *args, **kwargs):
            return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "more" not in name}

    trainer = lab.trainer(max_epochs=1)
    trainer.fit(More(), loader(1))
    trainer.save_checkpoint(lab.folder / "x.ckpt")
    if strict:
        with lab.error("more.weight"):
            lab.trainer(max_epochs=2).fit(More(), loader(1), ckpt_path=lab.folder / "x.ckpt")
        with lab.error("more.weight"):
            More.load_from_checkpoint(lab.folder / "x.ckpt")
    else:
        trainer = lab.trainer("order", max_epochs=2)
        trainer.fit(More(), loader(1), ckpt_path=lab.folder / "x.ckpt")
        lab.note("steps", trainer.global_step)
        lab.note("loaded", More.load_from_checkpoint(lab.folder / "x.ckpt", strict=False).layer.weight)


# ---- hyperparameters -----------------------------------------------------------------------------------------------


def saving_class(lab, save):
    class Saves(lab.Module):
        def __init__(self, width=3, *, depth=2, name="n", **more):
            super().__init__()
            save(self)
            lab.note("hparams", dict(self.hparams))

    return Saves


_SAVES = {
    "all": lambda self: self.save_hyperparameters(),
    "one": lambda self: self.save_hyperparameters("width"),
    "two": lambda self: self.save_hyperparameters("width", "depth"),
    "ignore": lambda self: self.save_hyperparameters(ignore="depth"),
    "ignore_two": lambda self: self.save_hyperparameters(ignore=["depth", "name"]),
    "dict": lambda self: self.save_hyperparameters({"a": 1, "b": "x"}),
    "not_logged": lambda self: self.save_hyperparameters(logger=False),
    "twice": lambda self: (self.save_hyperparameters("width"), self.save_hyperparameters("depth")),
    "nothing": lambda self: None,
}


@cases(**{name: {"save": save} for name, save in _SAVES.items()})
def hyperparameters(lab, save):
    Saves = saving_class(lab, save)
    module = Saves(5, depth=7, extra=1)
    trainer = lab.trainer(max_epochs=1)
    trainer.fit(module, loader(1))
    trainer.save_checkpoint(lab.folder / "x.ckpt")
    lab.note("saved", dict(torch.load(lab.folder / "x.ckpt", weights_only=True).get("hyper_parameters", {})))
    loaded = Saves.load_from_checkpoint(lab.folder / "x.ckpt", map_location="cpu")
    lab.note("loaded", dict(loaded.hparams), loaded.layer.weight)
    lab.note("overridden", dict(Saves.load_from_checkpoint(lab.folder / "x.ckpt", width=9).hparams))


@case
def hyperparameters_of_a_subclass(lab):
    class Base(lab.Module):
        def __init__(self, width, depth=1):
            super().__init__()
            self.save_hyperparameters()

    class Derived(Base):
        def __init__(self, rate, width=2):
            super().__init__(width * 10, depth=4)
            self.rate = rate

    lab.note("hparams", dict(Derived(0.5).hparams))


@case
def hyperparameters_change(lab):
    Saves = saving_class(lab, _SAVES["all"])
    module = Saves()
    module.hparams.width = 100
    module.hparams["depth"] = 50
    lab.note("hparams", module.hparams.width, dict(module.hparams), dict(module.hparams_initial))
    with lab.error("nowhere"):
        module.hparams.nowhere  # noqa: B018
    trainer = lab.trainer(max_epochs=1)
    trainer.fit(module, loader(1))


# ---- data modules --------------------------------------------------------------------------------------------------


def data_class(lab):
    class Data(lab.DataModule):
        def __init__(self, batches=2):
            super().__init__()
            self.save_hyperparameters()
            self.seen = 0

        def prepare_data(self):
            lab.note("prepare_data")

        def setup(self, stage):
            lab.note("data setup", stage)

        def teardown(self, stage):
            lab.note("data teardown", stage)

        def train_dataloader(self):
            lab.note("train_dataloader", self.trainer is not None)
            return loader(self.hparams.batches)

        def val_dataloader(self):
            lab.note("val_dataloader")
            return loader(1)

        def test_dataloader(self):
            return loader(1)

        def predict_dataloader(self):
            return loader(1)

        def state_dict(self):
            return {"seen": self.seen + 1}

        def load_state_dict(self, state):
            lab.note("data state", state)

        def on_exception(self, exception):
            lab.note("data exception", type(exception).__name__)

    return Data


@case
def data_module(lab):
    Data = data_class(lab)
    trainer = lab.trainer("order", max_epochs=2)
    module = lab.Module()
    trainer.fit(module, datamodule=Data(3))
    lab.end(trainer)
    trainer.save_checkpoint(lab.folder / "x.ckpt")
    lab.note("validate", trainer.validate(module, datamodule=Data(), verbose=False))
    lab.note("test", trainer.test(module, datamodule=Data(), verbose=False))
    lab.note("predict", trainer.predict(module, datamodule=Data()))
    lab.trainer("order", max_epochs=3, num_sanity_val_steps=0).fit(
        lab.Module(), datamodule=Data(), ckpt_path=lab.folder / "x.ckpt"
    )
    lab.note("loaded", dict(Data.load_from_checkpoint(lab.folder / "x.ckpt").hparams))


@case
def data_module_as_the_second_argument(lab):
    trainer = lab.trainer("order", max_epochs=1)
    trainer.fit(lab.Module(), data_class(lab)())
    lab.note("test", trainer.test(lab.Module(), data_class(lab)(), verbose=False))


@case
def data_module_and_loaders(lab):
    with lab.error("datamodule"):
        lab.trainer(max_epochs=1, logger=False).fit(lab.Module(), loader(1), datamodule=data_class(lab)())


@case
def data_module_hears_of_exceptions(lab):
    class Raises(lab.Module):
        def training_step(self, batch, batch_idx):
            raise ValueError("boom")

    with lab.error("boom"):
        lab.trainer("order", max_epochs=1).fit(Raises(), datamodule=data_class(lab)())


@cases(module={"in_data": False}, data_module={"in_data": True})
def transfer_hooks(lab, in_data):
    def before(self, batch, dataloader_idx):
        lab.note("before", batch.sum(), dataloader_idx)
        return batch + 1

    def transfer(self, batch, device, dataloader_idx):
        lab.note("transfer", str(device), dataloader_idx)
        return batch * 2

    def after(self, batch, dataloader_idx):
        lab.note("after", batch.sum(), dataloader_idx)
        return batch - 1

    Data, Module = data_class(lab), lab.Module
    owner = Data if in_data else Module
    owner.on_before_batch_transfer, owner.transfer_batch_to_device, owner.on_after_batch_transfer = (
        before,
        transfer,
        after,
    )
    trainer = lab.trainer("order metrics", max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(Module(), datamodule=Data())
    lab.end(trainer)
    lab.note("test", trainer.test(Module(), [loader(1), loader(1)] if not in_data else None, verbose=False,
                                  datamodule=Data() if in_data else None))  # fmt: skip
    lab.note("predict", trainer.predict(Module(), datamodule=Data()))


@case
def order_of_data_and_module(lab):
    class Module(lab.Module):
        def prepare_data(self):
            lab.note("module prepare_data")

        def setup(self, stage):
            lab.note("module setup", stage)

        def teardown(self, stage):
            lab.note("module teardown", stage)

        def configure_model(self):
            lab.note("configure_model")

        def configure_callbacks(self):
            lab.note("configure_callbacks")
            return []

        def configure_optimizers(self):
            lab.note("configure_optimizers")
            return super().configure_optimizers()

    trainer = lab.trainer("order", max_epochs=1)
    trainer.fit(Module(), datamodule=data_class(lab)())
    trainer.test(Module(), datamodule=data_class(lab)(), verbose=False)


# ---- callbacks of the module, small things -------------------------------------------------------------------------


@case
def callbacks_of_the_module(lab):
    class Says(lab.Callback):
        def __init__(self, name):
            self.name = name

        def on_train_start(self, trainer, pl_module):
            lab.note("says", self.name)

    class Other(Says):
        pass

    class Module(lab.Module):
        def configure_callbacks(self):
            return [Says("module")]

    trainer = lab.trainer(max_epochs=1, callbacks=[Says("trainer"), Other("other")])
    trainer.fit(Module(), loader(1))
    lab.note("callbacks", [type(callback).__name__ for callback in trainer.callbacks])

    class One(lab.Module):
        def configure_callbacks(self):
            return Other("single")

    trainer = lab.trainer(max_epochs=1)
    trainer.fit(One(), loader(1))


@case
def freeze_and_unfreeze(lab):
    module = lab.Module()
    module.freeze()
    lab.note("frozen", [p.requires_grad for p in module.parameters()], module.training)
    module.unfreeze()
    lab.note("unfrozen", [p.requires_grad for p in module.parameters()], module.training)


@case
def module_properties(lab):
    module = lab.Module()
    lab.note("alone", module.current_epoch, module.global_step, module.global_rank, module.local_rank,
             str(module.device), str(module.dtype), module.logger, module.loggers, module.automatic_optimization,
             module.strict_loading, module.example_input_array, module.on_gpu)  # fmt: skip
    with lab.error("trainer"):
        module.trainer  # noqa: B018

    class Reads(lab.Module):
        def training_step(self, batch, batch_idx):
            lab.note(
                "within", self.current_epoch, self.global_step, self.global_rank, self.logger is self.trainer.logger
            )
            return self.loss(batch)

    lab.fit(Reads(), train=2, max_epochs=2, watch="")


@case
def a_step_set_to_none(lab):
    class Sets(lab.Module):
        def val_dataloader(self):
            return loader(1)

    module = Sets()
    module.val_dataloader = None
    trainer = lab.trainer("order", max_epochs=1)
    trainer.fit(module, loader(1))
    other = Sets()
    other.validation_step = None
    trainer = lab.trainer("order", max_epochs=1)
    trainer.fit(other, loader(1))


@cases(duplicates={"same": True}, different={"same": False})
def state_keys(lab, same):
    class Keeps(lab.Callback):
        def __init__(self, name):
            self.name = name

        @property
        def state_key(self):
            return "key" if same else self.name

        def state_dict(self):
            return {"name": self.name}

        def load_state_dict(self, state):
            lab.note("state", self.name, state)

    if same:
        with lab.error("stateful"):
            lab.trainer(logger=False, max_epochs=2, callbacks=[Keeps("a"), Keeps("b")]).fit(
                lab.Module(), loader(1)
            )  # Lightning raises when it is made, we when a call begins
        return
    first = lab.trainer(max_epochs=1, callbacks=[Keeps("a"), Keeps("b")])
    first.fit(lab.Module(), loader(1))
    first.save_checkpoint(lab.folder / "x.ckpt")
    lab.trainer("", max_epochs=2, callbacks=[Keeps("a"), Keeps("b")]).fit(
        lab.Module(), loader(1), ckpt_path=lab.folder / "x.ckpt"
    )


@cases(**{name: {"stop": settings} for name, settings in {
    "patience": {"patience": 1}, "threshold": {"stopping_threshold": 0.2}, "max": {"mode": "max", "patience": 0},
    "train": {"monitor": "train_loss", "patience": 0, "mode": "max", "check_on_train_epoch_end": True},
}.items()})  # fmt: skip
def early_stopping(lab, stop):
    stopper = lab.library.EarlyStopping(**{"monitor": "val_loss", **stop})
    trainer = lab.fit(train=2, val=1, max_epochs=6, watch="order", callbacks=[stopper])
    lab.note("stopped", stopper.stopped_epoch, stopper.wait_count, stopper.best_score, trainer.should_stop)
