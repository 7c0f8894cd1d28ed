"""Shape files: what is read, and what a message about a bad one names."""

import pytest

from espnet3_lite.espnet.data.shape_files import read_matching_shapes, read_shapes, read_two_columns
from espnet3_lite.exceptions import MisconfigurationException


def test_shapes_in_file_order(tmp_path):
    path = tmp_path / "shape"
    path.write_text("b 312,80\n\na\t95,80\nc 7\n")
    shapes = read_shapes(path)
    assert shapes.keys == ["b", "a", "c"]
    assert [shapes.shape(index) for index in range(3)] == [[312, 80], [95, 80], [7]]
    assert (shapes.lengths().tolist(), shapes.elements().tolist()) == ([312, 95, 7], [24960, 7600, 7])
    assert shapes.first_odd() == 2


def test_second_column_is_optional_where_only_keys_count(tmp_path):
    path = tmp_path / "keys"
    path.write_text("b\na  some words\n")
    assert read_two_columns(path) == {"b": "", "a": "some words"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: no utterance"),
        ("a 1\nb 2\na 3\n", "line 3: 'a' is there twice"),
        ("a 10,80\n\nb ten,80\n", "line 3: the shape of utterance 'b' is 'ten,80'; expected integers"),
        ("a 10,80\nb\n", "line 2: the shape of utterance 'b' is ''"),
        ("a 10 80\n", "line 1: the shape of utterance 'a' is '10 80'"),
    ],
)
def test_unusable_files(tmp_path, text, message):
    path = tmp_path / "feats_shape"
    path.write_text(text)
    with pytest.raises(MisconfigurationException, match=message) as raised:
        read_shapes(path)
    assert str(path) in str(raised.value)


def test_missing_file_says_how_it_comes_about(tmp_path):
    with pytest.raises(MisconfigurationException, match="gone_shape' does not exist; `espnet3-lite collect-stats"):
        read_shapes(tmp_path / "gone_shape")


def test_keys_that_differ(tmp_path):
    one, other = tmp_path / "feats_shape", tmp_path / "text_shape"
    one.write_text("a 1\nb 2\nc 3\n")
    other.write_text("c 3\nd 4\n")
    with pytest.raises(MisconfigurationException) as raised:
        read_matching_shapes([one, other])
    message = str(raised.value)
    assert f"{one} and {other} do not have the same utterances" in message
    assert "2 only in the first (such as ['a', 'b'])" in message
    assert "1 only in the second (such as ['d'])" in message
