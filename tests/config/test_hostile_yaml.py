"""YAML that an attacker or an accident wrote: refused by a message, within two seconds."""

import time

import pytest

from espnet3_lite.config import Config, load_config
from espnet3_lite.config.yaml_text import parse_value, read_yaml
from espnet3_lite.exceptions import MisconfigurationException


@pytest.fixture(autouse=True)
def within_two_seconds():
    begin = time.process_time()  # of this process: a busy machine must not decide
    yield
    assert time.process_time() - begin < 2


def aliases(levels, width=9, merge=False):
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for level in range(1, levels):
        before = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} {{<<: [{before}]}}" if merge else f"a{level}: &a{level} [{before}]")
    return "\n".join(lines)


@pytest.mark.parametrize("merge", [False, True])
def test_nine_levels_of_aliases(tmp_path, merge):
    (tmp_path / "a.yaml").write_text(aliases(9, merge=merge))
    with pytest.raises(MisconfigurationException, match=r"a\.yaml: its aliases repeat \d+ values; at most 20000"):
        load_config(tmp_path / "a.yaml")


def test_aliases_in_an_override_and_inside_of_an_interpolation():
    text = "[" + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 1}]" for n in range(9)) + "]"
    for inside in (False, True):
        with pytest.raises(MisconfigurationException, match="its aliases repeat"):
            parse_value(text, in_interpolation=inside)


def test_what_people_use_aliases_for_is_read():
    config, _ = read_yaml(aliases(4), "a.yaml")
    assert config["a3"][0][0][0] == [1] * 9
    config, _ = read_yaml("base: &base {lr: 0.1}\nmine: {<<: *base, steps: 3}", "a.yaml")
    assert config["mine"] == {"lr": 0.1, "steps": 3}
    tokens, _ = read_yaml("tokens: [" + "a, " * 5_000 + "a]", "a.yaml")
    assert len(tokens["tokens"]) == 5_001


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 5000 + "]" * 5000, "a: " + "{a: " * 5000 + "1" + "}" * 5000, "a:\n  " + "- " * 5000 + "1"],
    ids=["lists", "mappings", "blocks"],
)
def test_deep_nesting(text):
    with pytest.raises(
        MisconfigurationException, match=r"a\.yaml, line \d: its values are nested too deeply: more than 100 levels"
    ):
        read_yaml(text, "a.yaml")
    with pytest.raises(MisconfigurationException, match="its values are nested too deeply"):
        parse_value(text[3:])


def test_a_number_of_too_many_digits():
    with pytest.raises(MisconfigurationException, match=r"a\.yaml: Exceeds the limit"):
        read_yaml("a: " + "1" * 10_000, "a.yaml")
    with pytest.raises(MisconfigurationException, match="is not a YAML value: Exceeds the limit"):
        parse_value("1" * 10_000)


@pytest.mark.parametrize(
    "first, following",
    [
        ("x", "${a%d}${a%d}"),
        ({"x": 1}, {"x": "${a%d}", "y": "${a%d}"}),
        ([1], ["${a%d}", "${a%d}"]),
        ("x", "${oc.decode:'${a%d}${a%d}'}"),
    ],
    ids=["texts", "mappings", "lists", "resolvers"],
)
def test_interpolations_that_double_at_each_step_are_refused(first, following):
    def numbered(value, index):
        if isinstance(value, dict):
            return {key: numbered(item, index) for key, item in value.items()}
        if isinstance(value, list):
            return [numbered(item, index) for item in value]
        return value.replace("%d", str(index))

    config = Config.create({"a0": first, **{f"a{n + 1}": numbered(following, n) for n in range(40)}})
    with pytest.raises(MisconfigurationException, match="a40: it stands for more than 2,000 other values"):
        value = config["a40"]
        value.to_container()


def test_many_interpolations_that_do_not_double_are_read():
    config = Config.create({"root": "r", "data": [f"${{root}}/{n}" for n in range(3_000)]})
    assert config.to_container()["data"][-1] == "r/2999"
