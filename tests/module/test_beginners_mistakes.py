"""What people easily get wrong in modules, data modules and loaders is told in words that say what would do."""

import re

import pytest
import torch
from weights_parts import Net, loader, trainer_of

from espnet3_lite import LiteDataModule, LiteModule, MisconfigurationException


class Forgets(LiteModule):
    def __init__(self):
        self.lr = 0.1

    def training_step(self, batch, batch_idx):
        """Never called."""

    def configure_optimizers(self):
        """Never called."""


class Empty(LiteDataModule):
    pass


@pytest.mark.parametrize(
    ("module", "data", "kind", "message"),
    [
        (Forgets, {}, MisconfigurationException, "Forgets.__init__ must call super().__init__() before anything else"),
        (Net, {"datamodule": loader()}, TypeError,
         "`datamodule` must be a `LiteDataModule`, got `DataLoader`; give loaders by the arguments of their names, or "
         "as the second one"),
        (Net, {"datamodule": Empty}, TypeError, "got `type`; pass an instance: add the parentheses"),
        (Net, {"datamodule": Empty()}, MisconfigurationException,
         "no loader for fit: pass train_dataloaders= to Trainer.fit(), or define Empty.train_dataloader()"),
        (Net, {"train_dataloaders": "data.csv"}, MisconfigurationException,
         "the training loader must be a loader, an iterable of batches (a DataLoader); got str"),
        (lambda: torch.nn.Linear(4, 1), {}, TypeError,
         "got `Linear`, a module without steps: make it a part of a LiteModule, whose training_step computes the loss"),
    ],
)  # fmt: skip
def test_a_fit_that_cannot_begin(module, data, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        trainer_of(max_epochs=1).fit(module(), **data)


def test_a_number_instead_of_a_loss():
    Module = type("Module", (Net,), {"training_step": lambda self, batch, batch_idx: 3.0})
    with pytest.raises(MisconfigurationException, match=r"a tensor \(no number, as from .item\(\)\).*got float"):
        trainer_of(max_epochs=1).fit(Module(), loader())


class Listed(Net):
    def __init__(self, frozen=False, kind=list):
        super().__init__()
        self.parts = kind([torch.nn.Linear(4, 1), torch.nn.Linear(1, 1)])
        for part in self.parts:
            part.requires_grad_(not frozen)


def warnings_of(module, recwarn):
    trainer_of(max_epochs=1).fit(module, loader())
    return [str(one.message) for one in recwarn if "modules, in which torch finds none" in str(one.message)]


def test_modules_in_a_list_are_told(recwarn):
    (text,) = warnings_of(Listed(), recwarn)
    assert text.startswith("Listed.parts is a list of modules") and "torch.nn.ModuleList" in text


@pytest.mark.parametrize("module", [Listed(frozen=True), Listed(kind=torch.nn.ModuleList), Net()])
def test_modules_that_torch_finds_or_that_are_frozen_are_not(module, recwarn):
    module.also = list(module.net)  # known by another name
    assert warnings_of(module, recwarn) == []


class Wide(Net):
    def __init__(self, hidden, name="wide"):
        super().__init__()


def test_an_argument_that_a_checkpoint_does_not_hold(tmp_path):
    trainer = trainer_of(max_epochs=1)
    trainer.fit(Wide(3), loader())
    trainer.save_checkpoint(tmp_path / "wide.ckpt")
    message = r"Wide.load_from_checkpoint: Wide.__init__ needs 'hidden', which.*checkpoint\(path, hidden=...\)"
    with pytest.raises(TypeError, match=message):
        Wide.load_from_checkpoint(tmp_path / "wide.ckpt")
    assert isinstance(Wide.load_from_checkpoint(tmp_path / "wide.ckpt", hidden=4), Wide)
    with pytest.raises(TypeError, match=r"from_checkpoint\(hiden=...\): .*no such argument; did you mean 'hidden'"):
        Wide.load_from_checkpoint(tmp_path / "wide.ckpt", hiden=4)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (lambda module: module.log(3, 0.5), "`self.log(3, ...)`: first comes the name, such as 'train/loss', then the"),
        (
            lambda module: module.log_dict([("loss", 0.5)]),
            "`self.log_dict(dictionary)`: give a dict of names and values;",
        ),
    ],
)
def test_names_that_are_no_text_and_values_without_names(log, message):
    class Logs(Net):
        def training_step(self, batch, batch_idx):
            log(self)
            return super().training_step(batch, batch_idx)

    with pytest.raises(TypeError, match=re.escape(message)):
        trainer_of(max_epochs=1).fit(Logs(), loader())


class GrowsInItsStep(Net):
    def training_step(self, batch, batch_idx):
        if not hasattr(self, "late"):
            self.late = torch.nn.Linear(1, 1)
        return super().training_step(batch, batch_idx) + self.late.weight.sum()


def test_layers_that_are_made_in_a_step_are_told_once(recwarn):
    trainer_of(max_epochs=3).fit(GrowsInItsStep(), loader())
    (text,) = [str(one.message) for one in recwarn if "no optimizer trains" in str(one.message)]
    assert text.startswith("no optimizer trains late.weight, late.bias, which the module got after")


def test_layers_that_are_made_in_a_step_and_trained_are_not_told(recwarn):
    class AddsThem(GrowsInItsStep):
        def on_train_epoch_end(self):
            known = [parameter for group in self.optimizers().param_groups for parameter in group["params"]]
            if not any(parameter is self.late.weight for parameter in known):
                self.optimizers().add_param_group({"params": list(self.late.parameters())})

    trainer_of(max_epochs=2).fit(AddsThem(), loader())
    assert not [one for one in recwarn if "no optimizer trains" in str(one.message)]


def test_a_validation_loader_without_batches_is_told(recwarn):
    trainer_of(max_epochs=1).validate(Net(), torch.utils.data.DataLoader([], batch_size=2))
    (text,) = [str(one.message) for one in recwarn if "gives no batch" in str(one.message)]
    assert text == "the validation loader gives no batch: DataLoader, samples=0, batch_size=2, drop_last=False"
