"""The benchmarks run, and refuse to compare different work. What they measure is no test: times differ."""

import json
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from benchmarks import files
from benchmarks.__main__ import ROWS, main
from benchmarks.data import by_dicts
from benchmarks.measuring import Row, interleaved, known, lines_of, require_equal
from espnet3_lite.espnet.data.samplers import build_batch_sampler

#: Rows in one process and without a process of their own; each takes a second.
QUICK = ("step", "features", "tensors", "callbacks", "logging", "logging-read", "contract", "named", "validation",
         "validation-read", "save", "bytes", "epochs", "resume", "numel", "length")  # fmt: skip
IN_A_PROCESS = [pytest.param(name, marks=pytest.mark.slow) for name in ("load", "load-again", "average")]


@pytest.mark.parametrize("name", [*QUICK, *IN_A_PROCESS])
def test_a_row_alone_compares_two_sides(name, capsys):
    threads = torch.get_num_threads()
    main([name, "--scale", "0.002", "--repetitions", "1"])
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert f"torch {torch.__version__}" in lines[0]
    assert table[2].startswith(f"| {name} | ")
    assert len(table) == 4
    first, second = ([cell.strip() for cell in line.strip("|").split("|")] for line in table[2:])
    assert float(first[3]) >= 0
    assert float(second[5]) > 0  # the ratio of medians


@pytest.mark.parametrize("name", ["load", "average"])
def test_what_a_process_of_its_own_prints(name, tmp_path, capsys):
    files.main(name, str(tmp_path), "2", "0.002", "wall")
    samples = json.loads(capsys.readouterr().out)
    assert {side: len(times) for side, times in samples.items()} == {"by hand": 2, "espnet3_lite": 2}
    assert all(seconds > 0 for times in samples.values() for seconds in times)


def test_sides_run_in_alternation_and_the_first_round_does_not_count():
    order = []

    def side(name):
        order.append(name)
        return float(len(order))

    samples = interleaved({name: lambda name=name: side(name) for name in "ab"}, repetitions=2)
    assert order == ["a", "b"] * 3
    assert samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_sides_that_trained_different_things_are_refused():
    require_equal({"one": torch.ones(2), "two": torch.ones(2)})
    with pytest.raises(RuntimeError, match="two trained something else than one"):
        require_equal({"one": torch.ones(2), "two": torch.zeros(2)})


def test_a_ratio_is_that_of_medians_and_of_minima():
    row = Row("name", "title", 1.5, "us", lambda options: {})
    lines = lines_of(row, {"first": [1e-6, 2e-6, 9e-6], "second": [2e-6, 3e-6, 4e-6], "third": [8e-6]})
    assert lines == [
        "| name | title | first | 2.0 | 1.0 us | | | |",
        "| | | second | 3.0 | 2.0 us | 1.50 | 2.00 | 1.5 |",
        "| | | third | 8.0 | 8.0 us | 4.00 | 8.00 | |",
    ]


def test_a_bar_that_a_peer_draws_is_not_in_the_table(tmp_path, capsys, monkeypatch):
    def measure(options):
        print("Training: 0/? [00:00<?, ?it/s]")  # Lightning's bar
        tqdm([1]).close()
        return {"by hand": [1e-6], "Lightning": [2e-6]}

    monkeypatch.setattr("benchmarks.__main__.ROWS", (Row("peers", "bars", None, "us", measure),))
    threads = torch.get_num_threads()
    main(["peers", "--output", str(tmp_path / "table.md")])
    torch.set_num_threads(threads)
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "table.md").read_text()
    head, empty, *table = printed.out.splitlines()
    assert f"torch {torch.__version__}" in head and empty == ""
    assert table[2:] == [
        "| peers | bars | by hand | 1.0 | 1.0 us | | | |",
        "| | | Lightning | 2.0 | 2.0 us | 2.00 | 2.00 | |",
    ]
    assert all(line.startswith("|") for line in table) and "Training: 0/?" in printed.err


def test_results_hold_text_and_tables_alone():
    lines = (Path(__file__).parents[2] / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "it/s" in line] == []


def test_unknown_rows_are_named(capsys):
    assert [row.name for row in known(ROWS, ["load", "step"])] == ["load", "step"]
    with pytest.raises(SystemExit):
        main(["stpe"])
    assert "no row is called stpe; there are step, features" in capsys.readouterr().err


def test_padding_needs_recordings(tmp_path, capsys):
    main(["padding", "--repetitions", "1"])
    assert "| padding | not measured here |" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"no \*.wav file"):
        main(["padding", "--recordings", str(tmp_path)])


@pytest.mark.filterwarnings("ignore:batch_bins")
@pytest.mark.parametrize("kind", ["length", "numel"])
def test_batches_by_hand_are_the_samplers(kind, tmp_path):
    files = [tmp_path / "one", tmp_path / "two"]
    files[0].write_text("".join(f"utterance{number} {number * 7 % 40 + 1},3\n" for number in range(100)))
    files[1].write_text("".join(f"utterance{number} {number * 5 % 9 + 1}\n" for number in range(100)))
    assert by_dicts(files, kind, 300) == list(build_batch_sampler(kind, batch_bins=300, shape_files=files))
