"""Whether losses and a batch's weight are sound, read at once where they are not on the CPU."""

import math

import pytest
import torch

from espnet3_lite.distributed.vote import _all_sound_on_device, all_sound

CASES = [
    ([torch.tensor(1.0), torch.tensor([2.0])], torch.tensor(4), True),
    ([torch.tensor([math.nan])], torch.tensor(4), False),
    ([torch.tensor(1.0)], torch.tensor(-1.0), False),
    ([torch.tensor(1.0)], torch.tensor(math.nan), False),
    ([torch.tensor(1e300, dtype=torch.float64)], torch.tensor(1), True),
    ([], torch.tensor(0), True),
]


@pytest.mark.parametrize(("losses", "weight", "expected"), CASES)
def test_both_ways_of_reading_say_the_same(losses, weight, expected):
    """What a GPU takes is tried on the CPU; ESPnet2 gives losses the shape (1,)."""
    assert _all_sound_on_device(losses, weight) is expected
    assert all_sound([(loss, None) for loss in losses] + [(None, None)], weight) is expected
