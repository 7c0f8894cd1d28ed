"""Lists that a module fills until its epoch ends, as Lightning's guides show: a run that was cut goes on with them."""

from collections import defaultdict

import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite import LiteModule
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.metrics.metric_objects import put_back_lists


class Cut(Exception):
    pass


class Collecting(LiteModule):
    """Keeps what its steps gave, in the ways that are usual."""

    def __init__(self, cut_after=None):
        super().__init__()
        self.layer, self.cut_after = torch.nn.Linear(1, 1), cut_after
        self.outputs, self.by_name, self.names = [], defaultdict(list), ["a", "b"]
        self.validated, self.noted, self.means = [], [], []

    def on_train_start(self):
        self.turns = [[], []]

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.outputs.append({"loss": loss, "batch": batch_idx})
        self.by_name["loss"].append(loss.item())
        self.turns[batch_idx % 2].append(batch_idx)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step == self.cut_after:
            raise Cut

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.layer(batch).sum())
        self.noted.append(batch_idx)

    def on_validation_epoch_end(self):
        self.log("val", torch.stack(self.validated).sum())
        self.validated.clear()
        if self.trainer.global_step == 4 and self.cut_after == "validation":
            raise Cut

    def on_train_epoch_end(self):
        self.means.append((self.current_epoch, torch.stack([output["loss"] for output in self.outputs]).mean().item()))
        self.means.append((self.by_name["loss"][:], [*self.turns], [output["batch"] for output in self.outputs]))
        self.forget()

    def forget(self):
        self.outputs.clear()
        self.by_name.clear()
        self.turns = [[], []]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder, cut_after=None, ckpt_path=None, **checkpoint):
    torch.manual_seed(0)
    saving = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, **checkpoint)
    trainer = quiet_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[saving])
    module, data = Collecting(cut_after), torch.utils.data.DataLoader(torch.arange(8.0)[:, None], batch_size=2)
    if cut_after is None:
        trainer.fit(module, data, data, ckpt_path=ckpt_path)
    else:
        with pytest.raises(Cut):
            trainer.fit(module, data, data)
    return module


@pytest.mark.parametrize(
    ("cut_after", "file", "checkpoint"),
    [
        (7, "step=6.ckpt", {"every_n_train_steps": 2}),  # in the midst of an epoch
        (5, "step=4.ckpt", {"every_n_train_steps": 2}),  # an epoch's last batch: its validation and its end follow
        (5, "step=4.ckpt", {"monitor": "val", "save_on_train_epoch_end": False}),  # saved when that validation ends
        ("validation", "step=4.ckpt", {"every_n_train_steps": 2}),  # the validation begins anew
        (5, "step=4.ckpt", {"save_on_train_epoch_end": True}),  # saved when the epoch had ended
    ],
)
def test_what_was_collected_is_there_when_the_epoch_ends(tmp_path, cut_after, file, checkpoint):
    whole = run(tmp_path / "whole", **checkpoint)
    run(tmp_path / "cut", cut_after, **checkpoint)
    resumed = run(tmp_path / "cut", ckpt_path=tmp_path / "cut" / file, **checkpoint)
    assert len(whole.means) == 6
    assert resumed.means == whole.means
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_a_list_that_the_module_fills_before_it_trains_stays_its_own(tmp_path):
    run(tmp_path, 6, every_n_train_steps=2)
    state = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["loops"]["espnet3_lite"]
    assert "outputs" in state["metrics"][0]["objects"]
    assert "names" not in state["metrics"][0]["objects"]
    assert "noted" not in state["metrics"][0]["objects"]  # the epoch's end does not look at it


class OfObjects(Collecting):
    def training_step(self, batch, batch_idx):
        self.objects = [*getattr(self, "objects", []), object()]
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self.objects.clear()


def test_a_list_of_objects_is_told(tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2)
    trainer = quiet_trainer(max_epochs=1, enable_checkpointing=True, callbacks=[saving])
    with pytest.warns(
        UserWarning, match=r"OfObjects.objects\[0\] is a builtins.object, which a checkpoint cannot hold"
    ):
        trainer.fit(OfObjects(), [torch.ones(1, 1)] * 3, [torch.ones(1, 1)])


def test_tensors_go_back_to_the_device_that_they_were_on():
    module, lists = Collecting(), {"outputs": [torch.ones(1)], "fresh": [torch.ones(1)]}
    put_back_lists(
        module, {name: {"collected": lists[name], "on_device": True} for name in lists}, torch.device("meta")
    )
    assert [module.outputs[0].device.type, module.fresh[0].device.type] == ["meta", "meta"]
    put_back_lists(module, {"outputs": {"collected": lists["outputs"], "on_device": False}}, torch.device("meta"))
    assert module.outputs[0].device.type == "cpu"
