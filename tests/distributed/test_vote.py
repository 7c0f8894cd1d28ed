"""Whether losses and a batch's weight are sound, read at once where they are not on the CPU."""

import math

import pytest
import torch

from espnet3_lite.distributed.vote import all_sound

CASES = [
    ([torch.tensor(1.0), torch.tensor([2.0])], torch.tensor(4), True),
    ([torch.tensor([math.nan])], torch.tensor(4), False),
    ([torch.tensor(1.0)], torch.tensor(-1.0), False),
    ([torch.tensor(1.0)], torch.tensor(math.nan), False),
    ([torch.tensor(1.0)], math.inf, False),
    ([torch.tensor(1.0)], -1, False),
    ([torch.tensor(-1.0)], 0, True),
    ([torch.tensor(1.0), torch.tensor(-math.inf)], None, False),
    ([torch.tensor(1e300, dtype=torch.float64)], torch.tensor(1), True),
    ([], torch.tensor(0), True),
    ([], None, True),
]


class OnDevice(torch.Tensor):
    """A number that stands for one on a GPU: it says that it is not on the CPU."""

    is_cpu = False

    def to(self, device, dtype):
        return self.as_subclass(torch.Tensor).to(dtype)


@pytest.mark.parametrize(("losses", "weight", "expected"), CASES)
def test_numbers_on_the_cpu(losses, weight, expected):
    """ESPnet2 gives losses the shape (1,)."""
    assert all_sound(losses, weight) is expected
    assert all_sound(losses, weight, read=False) is expected


@pytest.mark.parametrize(("losses", "weight", "expected"), CASES)
def test_numbers_on_a_gpu(losses, weight, expected):
    losses = [loss.as_subclass(OnDevice) for loss in losses]
    weight = weight.as_subclass(OnDevice) if isinstance(weight, torch.Tensor) else weight
    assert all_sound(losses, weight) is expected
    assert bool(all_sound(losses, weight, read=False)) is expected


def test_without_read_nothing_on_a_gpu_is_read():
    """A meta tensor holds nothing that could be read."""
    loss, weight = torch.ones((1,), device="meta"), torch.ones((), device="meta")
    for losses, given in (([loss], None), ([loss], 2.0), ([loss, loss], weight), ([], weight)):
        sound = all_sound(losses, given, read=False)
        assert (sound.device.type, sound.shape, sound.dtype) == ("meta", (), torch.bool)
