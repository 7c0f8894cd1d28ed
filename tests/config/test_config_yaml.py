"""YAML text: numbers as OmegaConf reads them (recorded by running 2.3.1), refusals with file and line, round trip."""

import math
from pathlib import Path

import pytest

from espnet3_lite.config.yaml_text import parse_value, read_yaml, write_yaml
from espnet3_lite.exceptions import MisconfigurationException

OMEGACONF_SCALARS = [
    ('1e-3', 0.001),
    ('1E5', 100000.0),
    ('1e5', 100000.0),
    ('1.e3', 1000.0),
    ('.5', 0.5),
    ('+1.5', 1.5),
    ('1_000', 1000),
    ('1_0.5', 10.5),
    ('012', 10),
    ('0o14', '0o14'),
    ('0x1F', 31),
    ('0b11', 3),
    ('01:00:00', '01:00:00'),
    ('00:12:00:00', '00:12:00:00'),
    ('yes', True),
    ('on', True),
    ('off', False),
    ('y', 'y'),
    ('~', None),
    ('null', None),
    ('Null', None),
    ('2024-01-01', '2024-01-01'),
    ('2024-01-01 10:00:00', '2024-01-01 10:00:00'),
    ('.inf', float("inf")),
    ('-.inf', float("-inf")),
    ('.nan', float("nan")),
    ('1.5e', '1.5e'),
    ('1e', '1e'),
    ('e5', 'e5'),
    ('-1e-3', -0.001),
    ('1e+3', 1000.0),
    ('.5e-3', 0.0005),
    ('1.5e3', 1500.0),
    ("'1e-3'", '1e-3'),
    ("!!float '3'", 3.0),
    ('1.', 1.0),
    ('0.', 0.0),
    ('1_', 1),
    ('1__0', 10),
    ('0.1.2', '0.1.2'),
    ('+1', 1),
    ('-0', 0),
    ("!!int '3'", 3),
    ('!!str 3', '3'),
    ('nan', 'nan'),
    ('inf', 'inf'),
    ('1e3_0', '1e3_0'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), OMEGACONF_SCALARS)
def test_scalar_is_what_omegaconf_reads(text, expected):
    value = read_yaml(f"v: {text}", "conf.yaml")[0]["v"]
    assert type(value) is type(expected)
    assert value == expected or (math.isnan(value) and math.isnan(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("-.5", -0.5), (".5e3", 500.0), ("1:30", "1:30"), ("10:00:00:00", "10:00:00:00"), ("1:30.5", "1:30.5")],
)
def test_where_we_read_yaml_1_2_and_omegaconf_does_not(text, expected):
    """Numbers that begin with a dot are numbers; durations are text, not numbers to the base of 60."""
    assert parse_value(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "conf.yaml, line 4: the key 'b.c' is given twice; it is already on line 3"),
        ("a: 1\n1: x\n1: y\n", "conf.yaml, line 3: the key '[1]' is given twice; it is already on line 2"),
        (
            "a: 0\n\nc: [1, 2\nb: 3\n",
            "conf.yaml, line 4: expected ',' or ']', but got ':'; the bracket was opened on line 3",
        ),
        (
            "z: 0\na:1\n\nb: 2\n",
            "conf.yaml, line 2: could not find expected ':'; write `key: value`, with a blank after the colon",
        ),
        (
            "a:\n\t- 1\n",
            "conf.yaml, line 2: found character '\\t' that cannot start any token; indent with spaces, not with a tab",
        ),
        (
            "a:\n  b: 1\n c: 2\n",
            "conf.yaml, line 3: expected <block end>, but found '<block mapping start>'; look at the "
            "indentation, of the line before too: keys of one mapping begin in one column",
        ),
        (
            "a:\n  b: 1\n   c: 2\n",
            "conf.yaml, line 3: mapping values are not allowed here; look at the indentation, of "
            "the line before too, or quote a text with ': '",
        ),
        ("- 1\n- 2\n", "conf.yaml: a configuration is a mapping of keys to values; this file holds a list"),
        ("a: &x\n  b: *x\n", "conf.yaml, line 1: the anchor 'a.b' contains itself"),
        (
            "a: 1\n---\nb: 2\n",
            "conf.yaml, line 2: expected a single document in the stream, but found another document",
        ),
        ("a: 'b\nc: 1\n", "conf.yaml, line 3: found unexpected end of stream; the quotation mark was opened on line 1"),
        ("a: *x\n", "conf.yaml, line 1: found undefined alias 'x'"),
    ],
)
def test_broken_text_is_refused_with_file_and_line(text, message):
    with pytest.raises(MisconfigurationException) as caught:
        read_yaml(text, "conf.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["a: !!timestamp 2024-01-02", "a:\n  b: !!set {x, y}"])
def test_dates_and_sets_are_refused_as_by_omegaconf(text):
    line = text.count("\n") + 1
    with pytest.raises(MisconfigurationException, match=rf"^conf.yaml, line {line}: could not determine a constructor"):
        read_yaml(text, "conf.yaml")


def test_a_character_that_yaml_does_not_allow():
    with pytest.raises(MisconfigurationException, match=r"^conf.yaml: unacceptable character #x0000"):
        read_yaml("a: \0", "conf.yaml")


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "!Custom 1"]
)
def test_no_tag_runs_code(tag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MisconfigurationException, match=r"conf.yaml, line 1: .*tags that make objects are not read"):
        read_yaml(f"a: {tag}", "conf.yaml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["", "# a comment\n", "---\n", "null\n"])
def test_an_empty_file_is_an_empty_mapping(text):
    assert read_yaml(text, "conf.yaml")[0] == {}


def test_anchors_and_merge_keys():
    text = "base: &base {lr: 1e-3, beta: 0.9}\nuse:\n  <<: *base\n  lr: 2e-3\n"
    assert read_yaml(text, "conf.yaml")[0]["use"] == {"lr": 0.002, "beta": 0.9}


def test_positions():
    positions = read_yaml("a:\n  b: 1\n  c:\n    - x\n    - y: 2\n", "conf.yaml")[1]
    assert positions == {
        ("a",): "conf.yaml, line 1",
        ("a", "b"): "conf.yaml, line 2",
        ("a", "c"): "conf.yaml, line 3",
        ("a", "c", 0): "conf.yaml, line 4",
        ("a", "c", 1): "conf.yaml, line 5",
        ("a", "c", 1, "y"): "conf.yaml, line 5",
    }


def test_round_trip_keeps_values_and_types():
    data = {
        "numbers": [1, 1.0, 1e-5, 1e30, -0.5, float("inf"), True, None],
        "texts": [
            "1e-3",
            "1",
            "yes",
            "null",
            "12:00",
            "-.5",
            "~",
            "",
            " x ",
            "a: b",
            "${x}",
            "日本",
            "2024-01-01",
            "0o14",
        ],
        "nested": {"empty": {}, "list": [], 0: "integer key"},
    }
    text = write_yaml(data)
    assert read_yaml(text, "conf.yaml")[0] == data
    assert list(read_yaml(text, "conf.yaml")[0]) == ["numbers", "texts", "nested"]


def test_shared_lists_are_written_out_and_paths_become_text():
    shared = [1]
    assert write_yaml({"a": shared, "b": shared, "path": Path("exp") / "one"}) == "a:\n- 1\nb:\n- 1\npath: exp/one\n"


class Weights:
    def __repr__(self):
        return "Weights()"


def within():
    def local(step):
        return step

    return local


@pytest.mark.parametrize(
    "data, message",
    [
        ({"a": 1j}, r"a: YAML cannot hold a complex: 1j; write plain values"),
        ({"model": {"layers": [1, Weights()]}}, r"model\.layers\[1\]: YAML cannot hold a Weights: Weights\(\); write"),
        (
            {"scheduler": {"_target_": "x", "lr_lambda": lambda step: 1.0}},
            r"scheduler\.lr_lambda: YAML cannot hold a function: <function <lambda> at .*>; it has no name of its own: "
            r"define it at the top of a module, where a file can name it",
        ),
        ({"a": [{"b": within()}]}, r"a\[0\]\.b: YAML cannot hold a function: <function within.<locals>.local"),
    ],
)
def test_what_yaml_cannot_hold_is_named_with_its_place(data, message):
    with pytest.raises(MisconfigurationException, match=message):
        write_yaml(data)
