"""What `self.log` refuses is told without the value's numbers."""

import numpy as np
import pytest
import torch

from espnet3_lite.metrics.logged_value import as_number


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.zeros(1000, 2),
            "`self.log('a', value)` was called with a tensor of shape (1000, 2), but the tensor must have a single "
            "element. You can try doing `self.log('a', value.mean())`",
        ),
        (
            torch.tensor(1j),
            "`self.log('a', ...)` with torch.complex64: log a real number, such as its abs() or real",
        ),
        (
            np.zeros(2),
            "`self.log('a', array([0., 0.]))` was called, but ndarray values cannot be logged; log a number or a "
            "tensor with a single element",
        ),
    ],
)
def test_what_is_no_real_number_is_told_by_its_shape_or_dtype(value, message):
    with pytest.raises(ValueError) as caught:
        as_number("a", value, enable_graph=False)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), np.array([0.5])])
def test_numpys_numbers_are_logged(value):
    assert as_number("a", value, enable_graph=False)[0] == 0.5
