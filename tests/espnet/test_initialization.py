"""`init`: the numbers that ESPnet draws. Each parameter's sum, recorded from espnet 202611 with torch 2.13.0 on CPU."""

import pytest
import torch
from torch import nn

from espnet3_lite.espnet.initialization import initialize
from espnet3_lite.exceptions import MisconfigurationException

RECORDED = {
    "xavier_uniform": [1.180846, 0.707969, 0, 3, 0, -0.338055, 0, 1.497415, 0.678312, -0.679769, 0, 0],
    "xavier_normal": [-0.47162, -2.328883, 0, 3, 0, -0.456976, 0, 1.992892, -1.955439, 0.918819, 0, 0],
    "kaiming_uniform": [1.180846, 1.119397, 0, 3, 0, -0.436427, 0, 1.497415, 1.072505, -1.359537, 0, 0],
    "kaiming_normal": [-0.47162, -3.682287, 0, 3, 0, -0.589953, 0, 1.992892, -3.09182, 1.837638, 0, 0],
    "normal": [-0.47162, -0.073646, 0, 3, 0, -0.020437, 0, 1.992892, -0.061836, 0.025988, 0, 0],
}


class InitializesItself(nn.Module):
    """As some of ESPnet's layers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def espnet_initialization_fn(self):
        nn.init.uniform_(self.weight)


class Pretrained(nn.Module):
    """As ESPnet's pretrained encoders: puts its own weights back."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 2), 7.0))

    def reload_pretrained_parameters(self):
        with torch.no_grad():
            self.weight.fill_(7.0)


def make_model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(3, 2), "linear": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "conv": nn.Conv1d(3, 2, 2),
            "own": InitializesItself(), "rnn": nn.GRU(2, 1),
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_the_draws_are_espnets(name):
    model = make_model()
    torch.manual_seed(1)
    initialize(model, name)
    assert [float(p.double().sum()) for p in model.parameters()] == pytest.approx(RECORDED[name], abs=2e-6)


@pytest.mark.parametrize("part", ["encoder", "frontend", "postencoder", "decoder"])
def test_pretrained_parts_keep_their_weights(part):
    model = nn.ModuleDict({part: Pretrained(), "other": Pretrained()})
    initialize(model, "normal")
    assert torch.equal(model[part].weight, torch.full((2, 2), 7.0))
    assert float(model["other"].weight.detach().abs().max()) < 1.0


def test_pretrained_frontends_of_a_fused_one():
    fused = nn.Module()
    fused.frontends = nn.ModuleList([Pretrained(), nn.Linear(2, 2)])
    model = nn.Module()
    model.frontend = fused
    initialize(model, "xavier_uniform")
    assert torch.equal(fused.frontends[0].weight, torch.full((2, 2), 7.0))
    assert torch.equal(fused.frontends[1].bias, torch.zeros(2))


def test_another_name_is_refused():
    message = "init: 'xavier_unifrom' is not one of xavier_uniform, .*; did you mean 'xavier_uniform'"
    with pytest.raises(MisconfigurationException, match=message):
        initialize(nn.Linear(1, 1), "xavier_unifrom")
