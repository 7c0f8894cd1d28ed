"""The mean of state dicts: values, types, ties and layout; files are `test_average_files.py`'s."""

import pytest
import torch

from espnet3_lite.callbacks.checkpoints import averaging
from espnet3_lite.callbacks.checkpoints.averaging import average_state_dicts


def average(*state_dicts):
    return average_state_dicts({f"{index}.ckpt": one for index, one in enumerate(state_dicts)})


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn]
)
def test_floating_tensors_are_averaged_and_keep_their_dtype(dtype):
    torch.manual_seed(0)
    values = [torch.randn(5, 3, dtype=torch.float64).to(dtype) for _ in range(7)]
    (result,) = average(*({"w": value} for value in values)).values()
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = sum(value.to(wide) for value in values) / len(values)
    assert result.dtype == dtype
    # Rounded once, at the end.
    assert torch.equal(result.to(wide), expected.to(dtype).to(wide))


def test_float32_is_within_1e_7_of_the_mean_in_float64_where_the_values_nearly_cancel():
    values = [torch.tensor([1e4, 1.0]), torch.tensor([-1e4, 1.0]), torch.tensor([1e-3, 1 + 2**-23])]
    (result,) = average(*({"w": value} for value in values)).values()
    expected = torch.stack([value.double() for value in values]).mean(0)
    assert ((result.double() - expected).abs() / expected.abs()).max() < 1e-7


def test_half_precision_does_not_overflow_in_the_sum():
    big = torch.full((2,), 60000.0, dtype=torch.float16)
    assert average({"w": big}, {"w": big}, {"w": big})["w"].tolist() == [60000.0, 60000.0]


def test_integers_are_summed_in_int64_and_booleans_are_the_best_s():
    first = {"n": torch.tensor([200, 1], dtype=torch.uint8), "count": torch.tensor(2**40), "mask": torch.tensor([True])}
    other = {"n": torch.tensor([100, 2], dtype=torch.uint8), "count": torch.tensor(5), "mask": torch.tensor([False])}
    result = average(first, other, other)
    assert result["n"].tolist() == [400, 5] and result["n"].dtype == torch.int64
    assert result["count"].item() == 2**40 + 10
    assert result["mask"].tolist() == [True]


def test_values_that_are_no_tensors_are_the_best_s():
    result = average({"w": torch.tensor(1.0), "extra": {"a": 1}}, {"w": torch.tensor(2.0), "extra": {"a": 2}})
    assert result == {"w": torch.tensor(1.5), "extra": {"a": 1}}


def tied(value):
    weight = torch.full((3, 2), value)
    return {"embedding": weight, "norm": torch.full((3, 2), value), "output": weight}


def test_tied_weights_stay_tied_and_others_do_not_become_so():
    result = average(tied(1.0), tied(2.0))
    assert result["embedding"] is result["output"]
    assert result["embedding"].data_ptr() != result["norm"].data_ptr()
    assert list(result) == ["embedding", "norm", "output"]
    assert torch.equal(result["output"], torch.full((3, 2), 1.5))


def test_what_is_tied_in_one_file_only_is_averaged_apart():
    untied = {"embedding": torch.full((3, 2), 2.0), "norm": torch.zeros(3, 2), "output": torch.full((3, 2), 5.0)}
    for state_dicts in ((tied(1.0), untied), (untied, tied(1.0))):
        result = average(*state_dicts)
        assert result["embedding"][0, 0].item() == 1.5
        assert result["output"][0, 0].item() == 3.0


def test_views_of_one_memory_are_averaged_apart():
    flat = [torch.arange(6.0), torch.arange(6.0) + 2]
    result = average(*({"a": one[:4].view(2, 2), "b": one[4:], "t": one[:4].view(2, 2).t()} for one in flat))
    assert result["a"].tolist() == [[1, 2], [3, 4]]
    assert result["b"].tolist() == [5, 6]
    assert result["t"].tolist() == [[1, 3], [2, 4]]
    # Each with memory of its own size, not of the whole.
    assert [value.untyped_storage().nbytes() for value in result.values()] == [16, 8, 16]


def test_the_inputs_are_left_as_they_were_and_gradients_do_not_follow():
    one, two = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(2))
    result = average({"w": one, "mask": torch.tensor(True)}, {"w": two, "mask": torch.tensor(False)})
    assert not result["w"].requires_grad
    assert (one.tolist(), two.tolist()) == ([1, 1], [0, 0])
    result["w"].zero_()
    assert one.tolist() == [1, 1]


def test_one_state_dict_is_copied():
    value = torch.randn(3)
    result = average({"w": value})["w"]
    assert torch.equal(result, value) and result.data_ptr() != value.data_ptr()


def test_small_blocks_cut_tensors_and_change_nothing(monkeypatch):
    torch.manual_seed(0)
    shapes = {"a": (7, 3), "b": (), "c": (2, 5, 2), "empty": (0, 3), "d": (40,), "e": (3, 4, 2, 2), "f": (1, 9)}
    state_dicts = [{key: torch.randn(shape) for key, shape in shapes.items()} for _ in range(3)]
    for one in state_dicts[1:]:  # of another layout than the first
        one["a"] = one["a"].t().contiguous().t()
    for one in state_dicts:
        one["e"] = one["e"].to(memory_format=torch.channels_last)
    whole = average(*state_dicts)
    monkeypatch.setattr(averaging, "BLOCK", 8)
    assert [len(averaging._blocks(one, one)) for one in state_dicts[0].values()] == [4, 1, 2, 1, 5, 3, 2]
    result = average(*state_dicts)
    for key in shapes:
        assert torch.equal(result[key], whole[key]), key
        assert torch.allclose(result[key], torch.stack([one[key] for one in state_dicts]).mean(0), atol=1e-7)
    assert result["e"].is_contiguous(memory_format=torch.channels_last)


def test_keys_that_differ_are_named_with_the_file():
    weight = torch.ones(1)
    with pytest.raises(KeyError, match=r"1\.ckpt: .*0\.ckpt: missing \['b'\], unexpected \['c'\]"):
        average({"a": weight, "b": weight}, {"a": weight, "c": weight})


@pytest.mark.parametrize(
    "other, message",
    [
        (torch.ones(3), r"1\.ckpt: 'w' has shape \(3,\) \(floating\), but \(2,\) \(floating\) in 0\.ckpt"),
        (torch.ones(2).int(), r"1\.ckpt: 'w' has shape \(2,\) \(integer\), but \(2,\) \(floating\)"),
        ("text", r"1\.ckpt: 'w' has shape None \(no tensor\)"),
    ],
)
def test_values_that_do_not_fit_are_named_with_the_file(other, message):
    with pytest.raises(ValueError, match=message):
        average({"w": torch.ones(2)}, {"w": other})


def test_integer_tables_that_are_the_same_in_all_files_are_named(caplog):
    def state(batches):
        return {"weight": torch.ones(2), "positions": torch.arange(4), "batches": torch.tensor(batches),
                "zero": torch.zeros(2, dtype=torch.int32), "mask": torch.tensor([True])}  # fmt: skip

    states = [state(2), state(1), state(3)]  # their sum is three times the first, though they differ
    average_state_dicts(dict(zip(["best", "b", "c"], states, strict=True)))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "positions. Where" in record.message and "3 times" in record.message and "best" in record.message
    assert "batches" not in record.message and "zero" not in record.message
    caplog.clear()
    average_state_dicts({"best": states[0]})
    assert not caplog.records
