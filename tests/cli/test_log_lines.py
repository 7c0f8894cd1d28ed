"""Where the commands' log lines go: above the bars on a terminal, and into the run's folder."""

import io
import logging
import sys
import warnings
from contextlib import contextmanager

import pytest
from tqdm import tqdm

from espnet3_lite.checkpoint import run_state
from espnet3_lite.cli.log_lines import AboveBars, kept_in, one_line, show_on_terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


@contextmanager
def no_handlers():
    """Within the block logging is as in a new process, without pytest's own handlers; then all is put back."""
    root = logging.getLogger()
    handlers, level, format_warning = root.handlers[:], root.level, warnings.formatwarning
    root.handlers = []
    try:
        with warnings.catch_warnings():
            yield root
    finally:
        logging.captureWarnings(False)
        warnings.formatwarning = format_warning
        root.handlers = handlers
        root.setLevel(level)


def test_a_line_clears_the_bar_and_the_bar_is_drawn_again_below():
    stream = Terminal()
    log = logging.Logger("test")
    log.addHandler(AboveBars(stream))
    with tqdm(total=4, file=stream, ncols=40) as bar:
        bar.update(2)
        before = len(stream.getvalue())
        log.info("loss=0.5")
        written = stream.getvalue()[before:]
    assert written.index("loss=0.5\n") < written.rindex("50%|"), "the bar must stand below the line"
    cleared = written[: written.index("loss=0.5")]
    assert set(cleared) <= {" ", "\r"} and cleared.endswith("\r"), "the line must begin where the bar was"


@pytest.mark.parametrize(
    ("rank", "quiet", "level"), [("0", False, "INFO"), ("0", True, "WARNING"), ("1", False, "WARNING")]
)
def test_rank_zero_logs_information_and_the_others_warnings(monkeypatch, capsys, rank, quiet, level):
    monkeypatch.setenv("RANK", rank)
    with no_handlers():
        show_on_terminal(quiet)
        logging.getLogger("espnet3_lite").info("at INFO")
        logging.getLogger("espnet3_lite").warning("at WARNING")
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == (["INFO at INFO"] if level == "INFO" else []) + ["WARNING at WARNING"]


def test_a_warning_is_one_line_with_its_place_unless_that_is_ours(capsys):
    with no_handlers():
        show_on_terminal(quiet=False)
        warnings.simplefilter("always")
        warnings.warn("careful", FutureWarning)
    (line,) = capsys.readouterr().out.splitlines()
    assert "WARNING FutureWarning: careful (" in line and f"{__file__}:" in line
    assert one_line("careful", UserWarning, one_line.__code__.co_filename, 3) == "UserWarning: careful"
    assert one_line("careful", UserWarning, run_state.__file__, 3) == "UserWarning: careful"
    assert one_line("careful", UserWarning, sys.argv[0], 4) == "UserWarning: careful"  # the command itself


def test_the_runs_file_holds_all_runs_and_is_closed(tmp_path):
    log = logging.getLogger("espnet3_lite")
    with no_handlers() as root:
        root.setLevel(logging.INFO)
        for number in (1, 2):
            with kept_in(tmp_path / "exp"):
                log.info("run %d", number)
            log.info("in between")
        assert root.handlers == []
    lines = (tmp_path / "exp" / "train.log").read_text().splitlines()
    assert [line.split(" INFO ")[1] for line in lines] == ["run 1", "run 2"]


def test_only_rank_zero_writes_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with kept_in(tmp_path / "exp"):
        logging.getLogger("espnet3_lite").warning("elsewhere")
    assert not (tmp_path / "exp").exists()


def test_an_exception_closes_the_file(tmp_path):
    with no_handlers() as root:
        with pytest.raises(RuntimeError, match="out of memory"):
            with kept_in(tmp_path):
                raise RuntimeError("out of memory")
        assert root.handlers == []
