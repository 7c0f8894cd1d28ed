"""What a recipe's data set must declare, and when it is checked."""

import numpy as np
import pytest
import torch

from espnet3_lite.espnet.data.contract import KINDS, BaseDataset, DatasetContractError, Field, Kind, register_kind


class Items(BaseDataset):
    fields = (Field("speech", "audio"), Field("text", "text"), Field("rate", "number", optional=True))

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


GOOD = {"speech": np.zeros(4, np.float32), "text": "one"}


def test_a_good_item_passes_and_may_have_more():
    item = {**GOOD, "speaker": object()}
    assert Items(item)[0] is item


def test_only_the_first_item_is_checked():
    dataset = Items(GOOD, {"text": 3})
    dataset[0]
    assert dataset[1] == {"text": 3}
    with pytest.raises(DatasetContractError):
        Items(GOOD, {"text": 3})[1]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([1, 2], "Items: an item must be a dict, got list"),
        (
            {**GOOD, "text": 3},
            "Items: field 'text' is declared as text, the item holds int",
        ),
        (
            {"speech": GOOD["speech"], "txt": "one"},
            r"lacks the declared field 'text'; it has \['speech', 'txt'\]; did you mean 'txt'",
        ),
        ({**GOOD, "rate": True}, "field 'rate' is declared as number, the item holds bool"),
    ],
)
def test_items_that_break_the_promise(item, message):
    with pytest.raises(DatasetContractError, match=message):
        Items(item)[0]


@pytest.mark.parametrize(
    ("kind", "value", "accepted"),
    [
        ("audio", np.zeros(3), True),
        ("audio", torch.zeros(3), True),
        ("audio", "a.wav", True),
        ("audio", (16000, np.zeros(3)), True),
        ("audio", (16000.5, np.zeros(3)), False),
        ("audio", 3, False),
        ("text", "one", True),
        ("text", b"one", False),
        ("number", np.float32(3), True),
        ("number", "3", False),
        ("segments", [{"text": "a", "start": 0, "end": 1}], True),
        ("segments", [{"text": "a"}], False),
        ("array", np.zeros((8, 8)), True),
        ("array", torch.zeros(1), True),
        ("array", [0.0], False),
    ],
)
def test_kinds(kind, value, accepted):
    assert KINDS[kind].accepts(value, Field("x", kind)) is accepted


def test_a_kind_of_ones_own_with_espnets_check(monkeypatch):
    monkeypatch.setattr("espnet3_lite.espnet.data.contract.KINDS", dict(KINDS))

    class Turns(Kind):
        def check(self, value, field, model, *, output):
            if not isinstance(value, list):
                raise TypeError(f"{field.name} must be a list")
            return value

    register_kind("turns", Turns())
    with pytest.raises(ValueError, match="kind 'turns' is registered already"):
        register_kind("turns", Turns())
    from espnet3_lite.espnet.data import contract

    assert contract.KINDS["turns"].accepts([1], Field("talk", "turns"))
    assert not contract.KINDS["turns"].accepts("hello", Field("talk", "turns"))
    with pytest.raises(TypeError, match="must be an instance of Kind"):
        register_kind("other", Turns)
    with pytest.raises(ValueError, match="kind 'audio' is registered already"):
        register_kind("audio", Turns())
    register_kind("array", Turns())  # ESPnet3 has no such kind: a recipe may bring its own
    assert contract.KINDS["array"].accepts([1], Field("talk", "array"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "adio"), "field 'x' has the unknown kind 'adio'.*did you mean 'audio'"),
        (("not good", "text"), "must be a Python identifier, got 'not good'"),
        (("x", "audio", "", False, 0), "channels must be at least 1 or None, got 0"),
    ],
)
def test_bad_fields(arguments, message):
    with pytest.raises(ValueError, match=message):
        Field(*arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([Field("a", "text")], "Bad.fields must be a tuple of at least one Field"),
        ((), "Bad.fields must be a tuple of at least one Field"),
        ((Field("a", "text"), Field("a", "audio")), r"Bad.fields has a name twice: \['a', 'a'\]"),
    ],
)
def test_bad_declarations_fail_when_the_class_is_made(fields, message):
    with pytest.raises(TypeError, match=message):
        type("Bad", (BaseDataset,), {"fields": fields, "__getitem__": lambda self, index: {}})


def test_fields_may_be_set_on_the_instance_but_not_left_out():
    class Late(BaseDataset):
        def __init__(self, kind):
            if kind:
                self.fields = (Field("x", kind),)

        def __getitem__(self, index):
            return {"x": "words"}

    assert Late("text")[0] == {"x": "words"}
    with pytest.raises(DatasetContractError, match="declared as number"):
        Late("number")[0]
    with pytest.raises(TypeError, match="does not declare `fields`"):
        Late(None)[0]
