"""mypy reads every file of the package: no file is exempted, and what it overlooks in a line is named."""

import configparser
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IGNORE = re.compile(r"type:\s*ignore(?P<codes>\[[a-z, -]+\])?")


def test_no_file_is_exempted():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings.getboolean("mypy", "strict")
    ours = [name for name in settings.sections() if name.startswith("mypy-espnet3_lite")]
    assert ours
    for name in ours:
        assert not settings[name].keys() & {"ignore_errors", "follow_imports", "ignore_missing_imports"}, name


def unnamed(source):
    """The lines whose comment overlooks all errors, instead of those of a kind that it names."""
    comments = [
        token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT
    ]
    return [token.start[0] for token in comments if (m := IGNORE.search(token.string)) and not m["codes"]]


def test_what_is_overlooked_in_a_line_is_named():
    found = {path.relative_to(ROOT).as_posix(): unnamed(path.read_text()) for path in ROOT.glob("espnet3_lite/**/*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(("comment", "lines"), [("# type: ignore", [1]), ("# type: ignore[misc]  # why", []), ("", [])])
def test_such_a_comment_is_found(comment, lines):
    assert unnamed(f"x = 1  {comment}\n") == lines
