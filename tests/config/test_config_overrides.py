"""Overrides: what Hydra 1.3.8 does with the same ones (recorded by running it), and our messages."""

import copy

import pytest

from espnet3_lite.config import load_config
from espnet3_lite.config.overrides import apply_override
from espnet3_lite.exceptions import MisconfigurationException

BASE = {"a": {"b": 1, "l": [1, {"p": 3}]}, "n": None}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=2", {"a": {"b": 2, "l": [1, {"p": 3}]}, "n": None}),
        ("+a.c=2", {"a": {"b": 1, "l": [1, {"p": 3}], "c": 2}, "n": None}),
        ("++a.b=5", {"a": {"b": 5, "l": [1, {"p": 3}]}, "n": None}),
        ("++a.q.r=5", {"a": {"b": 1, "l": [1, {"p": 3}], "q": {"r": 5}}, "n": None}),
        ("~a.b", {"a": {"l": [1, {"p": 3}]}, "n": None}),
        ("~a.b=1", {"a": {"l": [1, {"p": 3}]}, "n": None}),
        ("a.l.0=9", {"a": {"b": 1, "l": [9, {"p": 3}]}, "n": None}),
        ("a.l.1.p=9", {"a": {"b": 1, "l": [1, {"p": 9}]}, "n": None}),
        ("+a={x: 1}", {"a": {"b": 1, "l": [1, {"p": 3}], "x": 1}, "n": None}),
        ("a={b: 7}", {"a": {"b": 7, "l": [1, {"p": 3}]}, "n": None}),
        ("n=3", {"a": {"b": 1, "l": [1, {"p": 3}]}, "n": 3}),
        ("+n.x=3", {"a": {"b": 1, "l": [1, {"p": 3}]}, "n": {"x": 3}}),
        ("a.l=[5]", {"a": {"b": 1, "l": [5]}, "n": None}),
        ("a=4", {"a": 4, "n": None}),
        ("+a.b.c=4", {"a": {"b": {"c": 4}, "l": [1, {"p": 3}]}, "n": None}),
        ("+a.l.1.z=9", {"a": {"b": 1, "l": [1, {"p": 3, "z": 9}]}, "n": None}),
    ],
)
def test_override_does_what_hydra_does(override, expected):
    tree = copy.deepcopy(BASE)
    apply_override(tree, override)
    assert tree == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [("a.l[0]=9", [9, {"p": 3}]), ("~a.l.0", [{"p": 3}])],
)
def test_more_than_hydra_can(override, expected):
    tree = copy.deepcopy(BASE)
    apply_override(tree, override)
    assert tree["a"]["l"] == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("'1e-3'", "1e-3"), ("[1, a]", [1, "a"]), ("null", None), ("x y", "x y"), ("a=b", "a=b"),
     ("${a.b}", "${a.b}"), ("/p/q", "/p/q"), ("true", True), ("", None), ("10:00:00", "10:00:00")],
)  # fmt: skip
def test_values_are_read_as_yaml(text, value):
    tree = {"n": 0}
    apply_override(tree, f"n={text}")
    assert tree == {"n": value}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.bb=2", "'a' has no key 'bb'; to add a new key write +a.bb=...; did you mean 'b'?"),
        ("modle.size=1", "the configuration has no key 'modle'"),
        ("+a.b=2", "'a.b' is there already with the value 1; drop the + to change it"),
        ("~a.zz", "'a' has no key 'zz'"),
        ("~a.b=2", "'a.b' is 1, not 2"),
        ("a.l.7=9", "'a.l' is a list of 2; it has no item '7'"),
        ("+a.l.2=9", "'a.l' is a list of 2; it has no item '2'"),
        ("a={x:1}", "'{x:1}': YAML wants a space after the colon, as in {key: value}"),
        ("a={c: 1}", "'a' has no key 'c'; to add a new key write +a.c=..."),
        ("n.x=3", "'n' is None; it holds no 'x'"),
        ("a.b.c=4", "'a.b' is 1; it holds no 'c'"),
        ("n=[1", "'[1' is not a YAML value: expected ',' or ']', but got '<stream end>'; quote it if it is text"),
    ],
)
def test_messages(override, message):
    tree = copy.deepcopy(BASE)
    with pytest.raises(MisconfigurationException) as caught:
        apply_override(tree, override)
    assert str(caught.value) == f"override {override!r}: {message}"
    assert tree == BASE


@pytest.mark.parametrize("text", ["a.b", "=3", "a b=3", "", "+", ".a=3"])
def test_what_is_no_override(text):
    with pytest.raises(MisconfigurationException) as caught:
        apply_override({"a": {"b": 1}}, text)
    assert str(caught.value) == (
        f"override {text!r}: write key.path=value to change, +key=value to add, ~key to remove"
    )


def test_a_key_inside_of_an_interpolation_is_changed_where_it_stands():
    with pytest.raises(MisconfigurationException, match="an interpolation: override what it points at"):
        apply_override({"a": "${b}", "b": {"c": 1}}, "a.c=2")


def test_overrides_are_applied_in_order_after_all_files(tmp_path):
    (tmp_path / "one.yaml").write_text("a: {b: 1}\n")
    config = load_config(tmp_path / "one.yaml", overrides=["a.b=2", "+c=${a.b}", "a.b=3"])
    assert config == {"a": {"b": 3}, "c": 3}
    assert config.location("a", "b") == "command line"
