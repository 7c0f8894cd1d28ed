"""The collate function: padding, lengths, and which sample a message names."""

import numpy as np
import pytest
import torch

from espnet3_lite.espnet.data.collate import CommonCollateFn


def sample(uid, length, **extra):
    speech = np.arange(length * 2, dtype=np.float32).reshape(length, 2)
    return uid, {"speech": speech, "text": np.arange(length, dtype=np.int64), **extra}


def test_pads_and_tells_lengths():
    uids, batch = CommonCollateFn()([sample("a", 1), sample("b", 3)])
    assert uids == ["a", "b"]
    assert list(batch) == ["speech", "speech_lengths", "text", "text_lengths"]
    assert batch["speech"].dtype == torch.float32
    assert batch["speech"].tolist() == [[[0, 1], [0, 0], [0, 0]], [[0, 1], [2, 3], [4, 5]]]
    assert batch["text"].tolist() == [[0, -1, -1], [0, 1, 2]]
    assert batch["speech_lengths"].tolist() == batch["text_lengths"].tolist() == [1, 3]
    assert batch["text_lengths"].dtype == torch.int64


def test_pad_values_and_not_sequence():
    collate = CommonCollateFn(float_pad_value=9.5, int_pad_value=-32768, not_sequence=["label"])
    _, batch = collate([sample("a", 1, label=np.array([4])), sample("b", 2, label=np.array([5]))])
    assert batch["speech"][0, 1].tolist() == [9.5, 9.5]
    assert batch["text"].tolist() == [[0, -32768], [0, 1]]
    assert batch["label"].tolist() == [[4], [5]]
    assert "label_lengths" not in batch
    assert repr(collate) == ("CommonCollateFn(float_pad_value=9.5, int_pad_value=-32768, not_sequence=['label'])")


@pytest.mark.parametrize(("dtype", "filled"), [("int16", -1), ("uint8", 0), ("bool", False), ("float64", 0.0)])
def test_only_signed_integers_get_the_integer_value(dtype, filled):
    data = [("a", {"x": np.ones(1, dtype)}), ("b", {"x": np.ones(2, dtype)})]
    _, batch = CommonCollateFn()(data)
    assert batch["x"][0, 1].item() == filled
    assert batch["x"].dtype == getattr(torch, dtype)


def test_the_first_sample_decides_the_width_of_numbers():
    data = [("a", {"x": np.ones(2, np.float32)}), ("b", {"x": np.full(1, 0.1, np.float64)})]
    _, batch = CommonCollateFn()(data)
    assert batch["x"].dtype == torch.float32
    assert batch["x"].tolist() == [[1, 1], [np.float32(0.1), 0]]


def test_tensors_are_as_good_as_arrays():
    _, batch = CommonCollateFn()([("a", {"x": torch.ones(2)}), ("b", {"x": torch.ones(1)})])
    assert batch["x"].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "empty batch"),
        ([{"x": np.ones(1)}], TypeError, r"samples of the form \(uid, dict of arrays\), got dict"),
        (
            [("a", {"x": np.ones(1)}), ("b", {"y": np.ones(1)})],
            ValueError,
            r"same keys: 'a' has \['x'\], 'b' has \['y'\]",
        ),
        ([("a", {"x_lengths": np.ones(1)})], ValueError, r"sample 'a' has \['x_lengths'\]"),
        ([("a", {"text": "one"})], TypeError, "'text' of sample 'a' is str; .*preprocessor"),
        ([("a", {"text": np.array(["one"])})], TypeError, "'text' of sample 'a' is an array of <U3"),
        ([("a", {"n": np.array(3)})], ValueError, r"'n' of sample 'a' is a scalar.*shape \(1,\)"),
        ([("a", {"n": 3})], ValueError, r"'n' of sample 'a' is a scalar.*shape \(1,\), such as np.array\(\[3\]\)"),
        (
            [("a", {"x": np.ones((2, 80))}), ("b", {"x": np.ones((2, 40))})],
            ValueError,
            r"'x' differs within a batch: \(2, 80\) of torch.float64 in 'a', \(2, 40\)",
        ),
        (
            [("a", {"x": np.ones(2)}), ("b", {"x": np.ones(2, np.int64)})],
            ValueError,
            r"torch.float64 in 'a', \(2,\) of torch.int64 in 'b'",
        ),
    ],
)
def test_what_cannot_be_a_batch(data, error, message):
    with pytest.raises(error, match=message):
        CommonCollateFn()(data)
