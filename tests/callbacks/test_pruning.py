"""Pruning: masks and values as Lightning's, files without masks, and a resume that goes on with them."""

import logging

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from weights_parts import Net, assert_equal, loader, near, trainer_of, weights

from espnet3_lite import Callback, LiteModule, MisconfigurationException
from espnet3_lite.callbacks import ModelPruning


class Perceptron(LiteModule):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        layers = torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)
        self.net = torch.nn.Sequential(*layers).double()

    training_step = Net.training_step

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


class Plain(Perceptron):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Record(Callback):
    """Masks of the first and the last layer after each epoch."""

    def __init__(self):
        self.masks = []

    def on_train_epoch_end(self, trainer, pl_module):
        layers = pl_module.net[0], pl_module.net[2]
        self.masks.append(["".join(str(int(bit)) for bit in layer.weight_mask.flatten()) for layer in layers])


def fit(module, *callbacks, max_epochs=2, ckpt_path=None, **settings):
    trainer = trainer_of(*callbacks, max_epochs=max_epochs, **settings)
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return trainer


WEIGHTS_ALONE = dict(parameter_names=["weight"], use_lottery_ticket_hypothesis=False)
# What Lightning 2.6.6 gives: arguments; the masks after each epoch; the first layer's weights at the end.
LIGHTNING = {
    "global": (
        dict(pruning_fn="l1_unstructured", amount=0.3, **WEIGHTS_ALONE),
        [["011111010111", "011"], ["011110010010", "011"]],
        [0, 0.26828151401237377, -0.41246301166110233, -0.36833376660779915, -0.20816971329237458, 0, 0,
         0.4481201862554142, 0, 0, -0.15774837749570222, 0],
    ),
    "local": (
        dict(pruning_fn="l1_unstructured", amount=1, use_global_unstructured=False, **WEIGHTS_ALONE),
        [["011111111111", "011"], ["011111011111", "001"]],
        [0, 0.26828151401237377, -0.41246301166110233, -0.36833376660779915, -0.2077923015800115,
         0.13496013344987204, 0, 0.44764726122993503, -0.04011110068556999, 0.13293968133385603, -0.16108135673607982,
         -0.10214615016340006],
    ),
    "structured_in_the_first_epoch": (
        dict(
            pruning_fn="ln_structured", amount=lambda epoch: 1 - epoch, use_global_unstructured=False,
            use_lottery_ticket_hypothesis=lambda epoch: epoch == 0, pruning_dim=1, pruning_norm=2,
            parameter_names=["weight"], prune_on_train_epoch_end=False,
        ),
        [["011101110111", "011"], ["011101110111", "011"]],
        [0, 0.26826414894885403, -0.41218954716883244, -0.3682278481232554, 0, 0.12713929319065678,
         0.0028861375617089706, 0.4175533478414875, 0, 0.1293902952283325, -0.15207666296720856, -0.10307541850458536],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIGHTNING)
def test_numbers_equal_lightnings(name):
    arguments, masks, first = LIGHTNING[name]
    module, record = Plain(), Record()
    fit(module, ModelPruning(**arguments), record, num_sanity_val_steps=2)
    assert record.masks == masks
    assert module.net[0].weight.flatten().tolist() == near(first)
    assert isinstance(module.net[0].weight, torch.nn.Parameter)  # permanent: masks and hooks are gone
    assert not module.net[0]._forward_pre_hooks
    assert sorted(weights(module)) == ["net.0.bias", "net.0.weight", "net.2.bias", "net.2.weight"]


def test_a_winning_ticket_gets_its_initial_values_after_each_pruning():
    """(Lightning trains the copies from the second pruning on.)"""
    module, initial = Plain(), weights(Plain())

    class Check(Callback):
        zeros = []

        def on_train_epoch_end(self, trainer, pl_module):
            state = pl_module.state_dict()
            for name, value in initial.items():
                assert torch.equal(state[f"{name}_orig"], value)
            self.zeros.append(sum(int((state[f"{name}_mask"] == 0).sum()) for name in initial))

    check = Check()
    fit(module, ModelPruning("l1_unstructured", amount=0.5), check, max_epochs=3)
    assert check.zeros == [10, 14, 16]  # of 19; the banker's rounding of half of what is left
    assert [int((value == 0).sum()) for value in module.parameters()] != [0, 0, 0, 0]


def test_resampling_draws_new_values_and_keeps_the_mask():
    module, initial, drawn = Plain(), weights(Plain()), []

    class Note(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            drawn.append(pl_module.net[0].weight_orig.detach().clone())

    pruning = ModelPruning("l1_unstructured", amount=0.2, resample_parameters=True)
    fit(module, pruning, Note())
    assert not torch.equal(drawn[0], initial["net.0.weight"]) and not torch.equal(drawn[0], drawn[1])
    assert drawn[0].abs().max() <= 0.5  # a linear layer's own initialisation, 1 / sqrt(4 inputs)


def test_nothing_is_pruned_where_it_shall_not_be():
    pruned, plain = Plain(), Plain()
    fit(pruned, ModelPruning("l1_unstructured", apply_pruning=lambda epoch: False))
    fit(plain)
    assert_equal(weights(pruned), weights(plain))


@pytest.mark.parametrize("permanent", (True, False))
@pytest.mark.parametrize("lottery", (True, False))
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, permanent, lottery):
    arguments = dict(amount=0.2, make_pruning_permanent=permanent, use_lottery_ticket_hypothesis=lottery)

    class Save(Callback):
        place = 2

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    def products(module):
        return [layer.weight.detach().clone() for layer in (module.net[0], module.net[2])]

    whole, record = Perceptron(), Record()
    fit(whole, ModelPruning("l1_unstructured", **arguments), record, Save(), max_epochs=3)
    for step in (2, 3, 4, 6, 7, "end"):
        resumed, again = Perceptron(seed=9), Record()
        path = tmp_path / f"{step}.ckpt"
        fit(resumed, ModelPruning("l1_unstructured", **arguments), again, max_epochs=3, ckpt_path=path)
        assert again.masks == record.masks[len(record.masks) - len(again.masks) :]
        assert all(torch.equal(a, b) for a, b in zip(products(resumed), products(whole), strict=True))
        assert list(resumed.state_dict()) == list(whole.state_dict())  # with masks, or permanently without
        if permanent:  # signs of zeros too
            assert [str(p.tolist()) for p in products(resumed)] == [str(p.tolist()) for p in products(whole)]


def test_a_permanent_file_holds_products_and_loads_into_the_plain_model(tmp_path):
    class Save(Callback):
        place = 2

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "one.ckpt")
            self.state = weights(pl_module)

    save = Save()
    fit(Plain(), ModelPruning("l1_unstructured", amount=0.5, **WEIGHTS_ALONE), save, max_epochs=1)
    loaded = weights(Plain.load_from_checkpoint(tmp_path / "one.ckpt"))
    product = save.state["net.0.weight_orig"] * save.state["net.0.weight_mask"]
    assert torch.equal(loaded["net.0.weight"], product)
    # The sign of a zero follows a value that a run which goes on from the file does not have.
    assert "-0.0" in str(product.tolist()) and "-0.0" not in str(loaded["net.0.weight"].tolist())
    assert int((loaded["net.0.weight"] == 0).sum()) + int((loaded["net.2.weight"] == 0).sum()) == 8


@pytest.mark.parametrize("permanent", [True, False])
def test_a_file_of_weights_alone_holds_what_a_full_one_holds(tmp_path, permanent):
    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "full.ckpt")
            trainer.save_checkpoint(tmp_path / "alone.ckpt", weights_only=True)

    pruning = ModelPruning("l1_unstructured", amount=0.5, make_pruning_permanent=permanent, **WEIGHTS_ALONE)
    fit(Plain(), pruning, Save(), max_epochs=2)
    full, alone = (torch.load(tmp_path / name, weights_only=True) for name in ("full.ckpt", "alone.ckpt"))
    assert_equal(alone["state_dict"], full["state_dict"])
    assert ("net.0.weight" in alone["state_dict"]) is permanent and "pruning" not in alone
    if permanent:
        loaded = Plain.load_from_checkpoint(tmp_path / "alone.ckpt")
        assert int((loaded.net[0].weight == 0).sum()) + int((loaded.net[2].weight == 0).sum()) == 12


def test_buffers_that_are_called_like_masks_are_left_alone(tmp_path):
    class Attention(Plain):
        def __init__(self):
            super().__init__()
            self.register_buffer("attention_mask", torch.tensor([1.0, 0.0]))

    trainer = fit(Attention(), ModelPruning("l1_unstructured", amount=0.5), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["attention_mask"], torch.tensor([1.0, 0.0]))


def test_given_parameters_and_the_filter_choose():
    class LastAlone(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune=()):
            return parameters_to_prune[-1:]

    module = Plain()
    pairs = [(module.net[0], "weight"), (module.net[2], "weight")]
    fit(module, LastAlone("l1_unstructured", pairs, amount=2), max_epochs=1)
    assert int((module.net[0].weight == 0).sum()) == 0
    assert int((module.net[2].weight == 0).sum()) == 2


def test_a_method_of_ones_own():
    class KeepFirst(torch_prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t, default_mask):
            mask = torch.zeros_like(default_mask)
            mask.view(-1)[0] = 1
            return mask

    module, initial = Plain(), weights(Plain())
    fit(module, ModelPruning(KeepFirst, [(module.net[0], "weight")]), max_epochs=1)
    assert module.net[0].weight.flatten().tolist() == [initial["net.0.weight"].flatten()[0].item()] + [0] * 11


def test_verbose_logs_sparsity(caplog):
    caplog.set_level(logging.INFO, logger="espnet3_lite")
    arguments = dict(amount=1, use_global_unstructured=False, verbose=2, **WEIGHTS_ALONE)
    fit(Plain(), ModelPruning("l1_unstructured", **arguments), max_epochs=1)
    lines = [message for message in caplog.messages if message.startswith("Applied")]
    assert lines == [
        "Applied `l1_unstructured`. Pruned: 0/15 (0.00%) -> 2/15 (13.33%)",
        "Applied `l1_unstructured` to `Linear(in_features=4, out_features=3, bias=True).weight` with amount=1. Pruned: "
        "0 (0.00%) -> 1 (8.33%)",
        "Applied `l1_unstructured` to `Linear(in_features=3, out_features=1, bias=True).weight` with amount=1. Pruned: "
        "0 (0.00%) -> 1 (33.33%)",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (dict(pruning_fn="l1_unstructurd"), "did you mean 'l1_unstructured'"),
        (dict(pruning_fn=torch.nn.ReLU), "expected to be a str in"),
        (dict(pruning_fn="ln_structured", use_global_unstructured=False), "needs `pruning_dim`"),
        (dict(pruning_fn="ln_structured", use_global_unstructured=False, pruning_dim=0), "needs `pruning_norm`"),
        (dict(pruning_fn="random_structured", pruning_dim=0), "set use_global_unstructured=False"),
        (dict(pruning_fn=torch_prune.L1Unstructured, use_global_unstructured=False), "use_global_unstructured=True"),
        (dict(pruning_fn="l1_unstructured", amount="half"), "got 'half'"),
        (dict(pruning_fn="l1_unstructured", verbose=3), "got 3"),
        (dict(pruning_fn="l1_unstructured", parameter_names=["wait"]), "'wait' isn't in"),
    ),
)
def test_arguments_that_are_not_allowed(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        ModelPruning(**arguments)


def test_parameters_that_are_not_the_models():
    module, other = Plain(), torch.nn.Linear(1, 1)
    with pytest.raises(MisconfigurationException, match=r"missing modules: \[Linear.*missing parameters: \['wait'\]"):
        fit(module, ModelPruning("l1_unstructured", [(other, "weight"), (module.net[0], "wait")]))
    with pytest.raises(MisconfigurationException, match="list of tuple with 2 elements"):
        fit(module, ModelPruning("l1_unstructured", ["net.0.weight"]))
