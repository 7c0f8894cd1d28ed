"""``${...}``: the values that OmegaConf 2.3.1 gives, recorded by running it, and our messages."""

import pytest

from espnet3_lite.config import Config
from espnet3_lite.config.interpolation import RESOLVERS, InterpolationError

BASE = {
    "a": {"b": 3, "c": [10, 20, {"d": "x"}], "n": None, "t": True, "f": 0.5, "s": "txt"},
    "k": "b",
    "i": 1,
}  # fmt: skip

OMEGACONF_VALUES = [
    ('${a.b}', 3),
    ('${a.c[0]}', 10),
    ('${a.c.1}', 20),
    ('${a[c][2][d]}', 'x'),
    ('${a.c[2].d}', 'x'),
    ('${[a].b}', 3),
    ('x${a.b}y', 'x3y'),
    ('${a.b}${a.b}', '33'),
    ('${a.n}', None),
    ('p${a.n}', 'pNone'),
    ('p${a.t}', 'pTrue'),
    ('${a.f}', 0.5),
    ('p${a.f}', 'p0.5'),
    ('${a.${k}}', 3),
    ('${oc.env:CFG_SET}', '7'),
    ('${oc.env:CFG_UNSET,5}', '5'),
    ('${oc.env:CFG_UNSET,null}', None),
    ('${oc.env:CFG_UNSET,a b}', 'a b'),
    ("${oc.env:CFG_UNSET,'q, r'}", 'q, r'),
    ('${oc.env:CFG_UNSET,${a.b}}', '3'),
    ('${oc.env:CFG_UNSET,}', ''),
    ("${oc.decode:'[1,2]'}", [1, 2]),
    ('${oc.decode:${oc.env:CFG_SET}}', 7),
    ('${oc.select:a.b,9}', 3),
    ('${oc.select:zz,9}', 9),
    ('${oc.select:zz}', None),
    ('${oc.select:zz,1e-3}', 0.001),
    ('${oc.dict.keys:a}', ['b', 'c', 'n', 't', 'f', 's']),
    ('${oc.dict.values:a}', [3, [10, 20, {'d': 'x'}], None, True, 0.5, 'txt']),
    ('\\${a.b}', '${a.b}'),
    ('x\\${a.b}', 'x${a.b}'),
    ('\\\\${a.b}', '\\3'),
    ('\\\\\\${a.b}', '\\${a.b}'),
    ('c:\\dir', 'c:\\dir'),
    ('c:\\dir ${a.b}', 'c:\\dir 3'),
    ('a\\\\b ${a.b}', 'a\\\\b 3'),
    ('${ a.b }', 3),
    ('${a.c}', [10, 20, {'d': 'x'}]),
    ('p ${a.c}', "p [10, 20, {'d': 'x'}]"),
    ('p ${a}', "p {'b': 3, 'c': [10, 20, {'d': 'x'}], 'n': None, 't': True, 'f': 0.5, 's': 'txt'}"),
    ('$a', '$a'),
    ('}{', '}{'),
    ('$${a.b}', '$3'),
    ('${a.b}\\', '3\\'),
    ('${oc.env:CFG_UNSET,"d"}', 'd'),
    ('${oc.env:CFG_UNSET,/x/y-z_1.t}', '/x/y-z_1.t'),
    ('${oc.env:CFG_UNSET,1e-3}', '0.001'),
    ('${oc.env:CFG_UNSET,[1,2]}', '[1, 2]'),
    ('${oc.select:zz,[1,2]}', [1, 2]),
    ('${oc.select:zz,true}', True),
    ("${oc.select:zz, ' s '}", ' s '),
    ('${oc.select:zz,a:b}', 'a:b'),
    ('${oc.select:zz, x y }', 'x y'),
    ('${oc.select:.k}', 'b'),
    ('${.k}', 'b'),
    ('${oc.select:zz,\\,}', ','),
    ("${oc.select:zz,'it\\'s'}", "it's"),
    ('${oc.select:zz,1_000}', 1000),
    ('${oc.select:zz,on}', 'on'),
    ('${oc.select:zz,01}', '01'),
    ('${oc.env:${k}_X,d}', 'd'),
    ("${oc.select:zz,''}", ''),
    ('\\${', '${'),
    ('${oc.select:a.n,4}', None),
    ("${oc.decode:'yes'}", 'yes'),
    ("${oc.decode:'0x10'}", '0x10'),
    ("${oc.decode:'tRue'}", True),
    ("${oc.decode:' 3 '}", ' 3 '),
    ("${oc.decode:'a: b'}", 'a: b'),
    ("${oc.decode:'\"q\"'}", 'q'),
    ("${oc.decode:'inf'}", float('inf')),
    ("${oc.decode:'[yes,0x10,1,010,1_0,1e-3,1:2,x,NULL]'}", ['yes', '0x10', 1, '010', 10, 0.001, '1:2', 'x', None]),
    ("${oc.decode:'{a: yes, b: False}'}", {'a': 'yes', 'b': False}),
    ("${oc.decode:'[a, \"1\"]'}", ['a', '1']),
    ('${oc.select:zz,[yes]}', ['yes']),
    ('${oc.create:${a.c}}', [10, 20, {'d': 'x'}]),
    ('${oc.create:[1,2]}', [1, 2]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("CFG_SET", "7")
    monkeypatch.delenv("CFG_UNSET", raising=False)


def _plain(value):
    return value.to_container() if hasattr(value, "to_container") else value


@pytest.mark.parametrize(("text", "expected"), OMEGACONF_VALUES)
def test_value_is_what_omegaconf_gives(text, expected):
    value = _plain(Config.create({**BASE, "v": text}).v)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("tree", "path", "expected"),
    [
        ({"a": {"x": 1, "y": "${.x}"}}, ("a", "y"), 1),
        ({"a": {"x": 1, "z": {"w": "${..x}"}}}, ("a", "z", "w"), 1),
        ({"a": {"z": {"q": "${...r}"}}, "r": 5}, ("a", "z", "q"), 5),
        ({"l": [1, "${.0}", "${.[0]}", "${..r}"], "r": 5}, ("l",), [1, 1, 1, 5]),
        ({"a": "${b}", "b": {"c": "${.d}", "d": 4}, "v": "${a.c}"}, ("v",), 4),
        ({"a": {"x": "p${.y}", "y": "q${..r}"}, "r": 1}, ("a", "x"), "pq1"),
        # a relative reference belongs to the place where it is written, also when it is reached through another
        ({"b": {"c": "${.d}", "d": 4}, "e": {"d": 5, "f": "${b}"}, "v": "${e.f.c}"}, ("v",), 4),
        ({"a-b": 1, "v": "${a-b}"}, ("v",), 1),
        ({"a/b": 1, "v": "${a/b}"}, ("v",), 1),
    ],
)
def test_relative_and_chained_references_as_in_omegaconf(tree, path, expected):
    value = Config.create(tree)
    for key in path:
        value = value[key]
    assert value == expected


def test_more_than_omegaconf_can():
    """Integer keys, and a number as the inner part of a nested reference; OmegaConf refuses both."""
    config = Config.create({"d": {0: 4}, "i": 1, "l": [5, 6], "key": "${d.0}", "item": "${l[${i}]}"})
    assert (config.key, config.item) == (4, 6)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"v": "${modle}", "model": 1},
         "v: '${modle}' names a key that is missing: the configuration has no 'modle'; did you mean 'model'?"),
        ({"v": "x/${a.siez}", "a": {"size": 1}},
         "v: 'x/${a.siez}' names a key that is missing: 'a' has no 'siez'; did you mean 'size'?"),
        ({"v": "${l[7]}", "l": [1, 2]}, "v: '${l[7]}' asks for item 7 of 'l', which has 2"),
        ({"v": "${n.x}", "n": None}, "v: '${n.x}' asks for 'x' inside of 'n', which is None"),
        ({"v": "${..k}", "k": 1}, "v: '${..k}' has 2 dots, but its key is only 1 levels deep"),
        ({"v": "${v}"}, "v: the interpolations go round in a cycle: v -> v"),
        ({"v": "${b.x}", "b": {"x": "p${c}"}, "c": "${v}"},
         "v: the interpolations go round in a cycle: v -> b.x -> c -> v"),
        ({"v": {"b": "${v}"}}, "v.b: '${v}' points at a mapping or list that contains it"),
        ({"v": {"x": "${w}"}, "w": {"y": "${v}"}}, "w.y: the interpolations go round in a cycle: v -> w -> v"),
        ({"v": "${k"}, "v: '${k' opens '${' and never closes it"),
        ({"v": "${a b}"}, "v: '${a b}' is not an interpolation such as ${a.b[0]}"),
        ({"v": "${oc.evn:HOME}"}, "v: '${oc.evn:HOME}' uses an unknown resolver 'oc.evn'; did you mean 'oc.env'?"),
        ({"v": "${oc.env:CFG_UNSET}"}, "v: the environment variable 'CFG_UNSET' is not set and no default is given"),
        ({"v": "${oc.env:}"},
         "v: '${oc.env:}': missing a required argument: 'variable'; use it as ${oc.env:variable,default}"),
        ({"v": "${oc.env:A,b,c}"},
         "v: '${oc.env:A,b,c}': too many positional arguments; use it as ${oc.env:variable,default}"),
        ({"v": "${oc.decode:'[1'}"},
         "v: '[1' is not a YAML value: expected ',' or ']', but got '<stream end>'; quote it if it is text"),
        ({"v": "${oc.select:zz,{a:1}}"}, "v: '{a:1}': YAML wants a space after the colon, as in {key: value}"),
        ({"v": "${self_name:}"}, "v: '${self_name:}' needs a recipe's file; load it with load_config"),
        ({"v": "${load_line:nowhere.txt}"}, "v: load_line: there is no file 'nowhere.txt'"),
        ({"v": "${oc.deprecated:zz}"}, "v: oc.deprecated names a key that is missing: the configuration has no 'zz'"),
        ({"v": "${oc.deprecated:a b}"}, "v: oc.deprecated: 'a b' is not a key"),
        ({"v": "${oc.dict.keys:k}", "k": 3}, "v: 'k' is not a mapping but 3"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:'v' is deprecated")
def test_messages(tree, message):
    with pytest.raises(InterpolationError) as caught:
        Config.create(tree).to_container()["v"]
    assert str(caught.value) == message


def test_a_deprecated_key_warns_and_gives_the_new_ones_value():
    config = Config.create(
        {"new": [1, 2], "old": "${oc.deprecated:new}", "older": "${oc.deprecated:new,'$OLD_KEY left'}"}
    )
    with pytest.warns(UserWarning, match="^'old' is deprecated; use 'new'$"):
        assert config.old == [1, 2]
    with pytest.warns(UserWarning, match="^older left$"):
        assert config.older == [1, 2]


def test_a_container_may_be_reached_twice_without_being_a_cycle():
    config = Config.create({"a": {"x": 1, "y": "${z.x}"}, "z": "${a}", "both": ["${a}", "${a}"]})
    assert config.to_container()["both"] == [{"x": 1, "y": 1}, {"x": 1, "y": 1}]
    assert config.z.y == 1


def test_a_program_may_add_a_resolver(monkeypatch):
    monkeypatch.setitem(RESOLVERS, "double", lambda position, value: value * 2)
    assert Config.create({"size": 4, "v": "${double:${size}}"}).v == 8


def test_a_shells_way_to_name_an_environment_variable(monkeypatch):
    monkeypatch.setenv("CORPUS", "/data")
    with pytest.raises(InterpolationError, match=r"has no 'CORPUS'; the environment variable is \$\{oc.env:CORPUS\}"):
        Config.create({"v": "${CORPUS}"}).v  # noqa: B018
