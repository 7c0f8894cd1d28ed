"""Freezing and unfreezing: which parameters, at which rates, as Lightning's numbers, and over a resume."""

import copy
import logging

import pytest
import torch
from weights_parts import assert_equal, loader, near, trainer_of, weights

from espnet3_lite import Callback, LiteModule, MisconfigurationException
from espnet3_lite.callbacks import BackboneFinetuning, BaseFinetuning


class Model(LiteModule):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).double()
        self.head = torch.nn.Linear(3, 1).double()

    def training_step(self, batch, batch_idx):
        return self.head(self.backbone(batch[0])).square().mean()

    def configure_optimizers(self):
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trainable, lr=0.1, momentum=0.9)


class Groups(Callback):
    """Rate and size of each parameter group in each epoch; the first weight after it."""

    def __init__(self):
        self.groups, self.weights = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        groups = trainer.optimizers[0].param_groups
        self.groups.append([(group["lr"], len(group["params"])) for group in groups])

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights.append(pl_module.backbone[0].weight.detach().clone())


def fit(module, *callbacks, max_epochs=5, ckpt_path=None):
    trainer = trainer_of(*callbacks, max_epochs=max_epochs)
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer


# What Lightning 2.6.6 gives: arguments; (rate, parameters) of each group in each epoch; three weights and the head's
# bias at the end; the backbone's last rate.
LIGHTNING = {
    "default": (
        dict(unfreeze_backbone_at_epoch=2),
        [[(0.1, 4)], [(0.1, 4)], [(0.1, 4), (0.010000000000000002, 2)], [(0.1, 4), (0.020000000000000004, 2)],
         [(0.1, 4), (0.04000000000000001, 2)]],
        [-0.010163167952498617, 0.27103519794455916, -0.41149449246229963], 0.1841276454359166, 0.04000000000000001,
    ),
    "not_aligned": (
        dict(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.07, lambda_func=lambda epoch: 1.1,
             should_align=False, train_bn=False),
        [[(0.1, 4)], [(0.1, 4), (0.07, 2)], [(0.1, 4), (0.07700000000000001, 2)],
         [(0.1, 4), (0.08470000000000003, 2)], [(0.1, 4), (0.09317000000000003, 2)]],
        [-0.003390533602597978, 0.27532550514794524, -0.4174127653795619], 0.3056775546698444, 0.09317000000000003,
    ),
    "by_ratio": (
        dict(unfreeze_backbone_at_epoch=2, backbone_initial_ratio_lr=0.3, lambda_func=lambda epoch: 1.5),
        [[(0.1, 4)], [(0.1, 4)], [(0.1, 4), (0.03, 2)], [(0.1, 4), (0.045, 2)], [(0.1, 4), (0.0675, 2)]],
        [-0.012500887927619095, 0.27127382341993583, -0.41226695161211574], 0.20978467300815995, 0.0675,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:2 of the parameters to unfreeze")
@pytest.mark.parametrize("name", LIGHTNING)
def test_numbers_equal_lightnings(name):
    arguments, groups, first, bias, rate = LIGHTNING[name]
    module, record, finetuning = Model(), Groups(), BackboneFinetuning(**arguments)
    fit(module, finetuning, record)
    assert record.groups == groups
    assert module.backbone[0].weight.flatten()[:3].tolist() == near(first)
    assert module.head.bias.item() == near(bias)
    assert finetuning.previous_backbone_lr == rate
    unfrozen = arguments["unfreeze_backbone_at_epoch"]
    same = [torch.equal(record.weights[0], weight) for weight in record.weights]
    assert same == [epoch < max(unfrozen, 1) for epoch in range(5)]


def test_the_backbones_rate_aligns_with_the_heads():
    record = Groups()
    with pytest.warns(UserWarning, match="2 of the parameters to unfreeze already exist"):
        fit(Model(), BackboneFinetuning(0, backbone_initial_lr=0.04), record, max_epochs=4)
    assert [groups[-1][0] for groups in record.groups] == [0.04, 0.08, 0.1, 0.1]


@pytest.mark.filterwarnings("ignore:2 of the parameters to unfreeze")
def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    class Save(Callback):
        place = 2

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    whole = Model()
    fit(whole, BackboneFinetuning(2), Save())
    for step in (3, 5, 6, 7, 9, 14):  # before, at, and after the epoch that unfreezes
        resumed, record = Model(seed=5), Groups()
        fit(resumed, BackboneFinetuning(2), record, ckpt_path=tmp_path / f"{step}.ckpt")
        assert_equal(weights(resumed), weights(whole))
        assert resumed.backbone[0].weight.requires_grad


@pytest.mark.filterwarnings("ignore:2 of the parameters to unfreeze")
def test_a_file_of_lightnings_unfreezes_what_had_been_added(tmp_path):
    """Its callback's state lacks our entry; in Lightning the backbone of a resumed run stays frozen."""
    whole, resumed, path = Model(), Model(seed=5), tmp_path / "three.ckpt"
    fit(Model(), BackboneFinetuning(2), max_epochs=3).save_checkpoint(path)
    fit(whole, BackboneFinetuning(2))
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["BackboneFinetuning"]["frozen"]
    torch.save(checkpoint, path)
    fit(resumed, BackboneFinetuning(2), ckpt_path=path)
    assert_equal(weights(resumed), weights(whole))


def test_what_is_unfrozen_without_an_optimizers_knowledge_is_so_after_a_resume(tmp_path):
    class Unfreeze(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.backbone, train_bn=False)

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.make_trainable(pl_module.backbone[1])

    first = Model()
    fit(first, Unfreeze(), max_epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    resumed = Model()
    fit(resumed, Unfreeze(), max_epochs=3, ckpt_path=tmp_path / "two.ckpt")
    states = {name: parameter.requires_grad for name, parameter in resumed.backbone.named_parameters()}
    assert states == {"0.weight": False, "0.bias": False, "1.weight": True, "1.bias": True}
    assert resumed.backbone[1].track_running_stats is True


def test_an_optimizer_of_many_is_finetuned_by_its_index():
    class Unfreeze(BaseFinetuning):
        calls = []

        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.backbone)

        def finetune_function(self, pl_module, epoch, optimizer):
            self.calls.append((epoch, len(optimizer.param_groups)))

    class Manual(Model):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return [torch.optim.SGD(self.head.parameters(), lr=0.1), torch.optim.Adam(self.backbone[1].parameters())]

    callback = Unfreeze()
    fit(Manual(), callback, max_epochs=2)
    assert callback.calls == [(0, 1), (0, 1), (1, 1), (1, 1)]
    names = [groups[0]["params"] for groups in callback.state_dict()["internal_optimizer_metadata"].values()]
    assert names == [["head.weight", "head.bias"], ["backbone.1.weight", "backbone.1.bias"]]


# ---- tools ---------------------------------------------------------------------------------------------------------


def test_flatten_modules_gives_leaves_and_parents_with_parameters():
    class Parent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.child = torch.nn.Parameter(torch.ones(1)), torch.nn.Linear(1, 1)

    parent, norm = Parent(), torch.nn.BatchNorm1d(2)
    flat = BaseFinetuning.flatten_modules([torch.nn.Sequential(parent), [norm]])
    assert flat == [parent, parent.child, norm]
    assert BaseFinetuning.flatten_modules(torch.nn.ModuleDict({"a": parent})) == [parent, parent.child]
    assert len(list(BaseFinetuning.filter_params(parent))) == 3  # the child's are not counted twice


def test_freeze_leaves_batch_norm_as_asked():
    module = Model().backbone
    BaseFinetuning.freeze(module)
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    assert list(BaseFinetuning.filter_params(module)) == list(module[1].parameters())
    assert list(BaseFinetuning.filter_params(module, train_bn=False)) == []
    assert list(BaseFinetuning.filter_params(module, requires_grad=False)) == list(module[0].parameters())
    BaseFinetuning.freeze(module, train_bn=False)
    assert (module[1].track_running_stats, module[1].weight.requires_grad) == (False, False)
    BaseFinetuning.make_trainable(module)
    assert (module[1].track_running_stats, module[0].weight.requires_grad) == (True, True)


def test_unfreeze_adds_a_group_at_the_right_rate():
    model = Model()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.5)
    second = copy.deepcopy(optimizer)
    BaseFinetuning.unfreeze_and_add_param_group(model.backbone, optimizer, train_bn=False)
    assert [(g["lr"], len(g["params"])) for g in optimizer.param_groups] == [(0.5, 2), (0.05, 2)]
    BaseFinetuning.unfreeze_and_add_param_group(model.backbone, second, lr=0.3)
    assert [(g["lr"], len(g["params"])) for g in second.param_groups] == [(0.5, 2), (0.3, 4)]


def test_parameters_of_equal_values_are_different_parameters():
    held, other = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([held], lr=0.1)
    with pytest.warns(UserWarning, match="1 of the parameters to unfreeze already exist"):
        assert BaseFinetuning.filter_on_optimizer(optimizer, [held, other])[0] is other


def test_a_module_without_backbone_is_refused():
    class Headless(Model):
        def __init__(self):
            super().__init__()
            del self.backbone

    with pytest.raises(MisconfigurationException, match="Headless should have a nn.Module `backbone` attribute"):
        fit(Headless(), BackboneFinetuning())


def test_what_must_be_overridden_says_so():
    with pytest.raises(NotImplementedError, match="BaseFinetuning.freeze_before_training"):
        fit(Model(), BaseFinetuning())


@pytest.mark.filterwarnings("ignore:2 of the parameters to unfreeze")
def test_verbose_logs_both_rates(caplog):
    caplog.set_level(logging.INFO, logger="espnet3_lite")
    fit(Model(), BackboneFinetuning(1, backbone_initial_lr=1 / 30, verbose=True, rounding=3), max_epochs=2)
    assert "Current lr: 0.1, Backbone lr: 0.033" in caplog.messages
