"""The GPU script, tried out on the CPU: it runs, counts reads, and resumes to the same bits. Its times are no test."""

import json

import pytest
import torch

from benchmarks.gpu import PARTS, main


def rows(tmp_path, *parts):
    """The table's figures, by row and side."""
    threads = torch.get_num_threads()
    main([*parts, "--device", "cpu", "--scale", "0.01", "--json", str(tmp_path / "gpu.json")])
    torch.set_num_threads(threads)
    return {(row["row"], row["side"]): row["value"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}


def test_reads_resume_and_saving_without_a_gpu(tmp_path, capsys):
    found = rows(tmp_path, "reads", "resume", "saving")
    assert found["reads a step, bare", "espnet3_lite"] == 1
    # The vote's and the norm's, and that of the logged value, which a CPU alone reads at once: see
    # `tests/metrics/test_operations_counted.py`.
    assert found["reads a step, full", "espnet3_lite"] == 3
    assert found["reads a step, bf16-mixed", "espnet3_lite"] == 3
    assert found["reads a step, 16-mixed", "espnet3_lite"] == 3
    assert found["weights that differ after a resume", "dropout, in mid-epoch"] == 0
    assert "| training waits for a save | async_save |" in capsys.readouterr().out


@pytest.mark.slow
def test_copies_are_measured_in_their_turn_and_one_ahead(tmp_path):
    sides = [side for row, side in rows(tmp_path, "copies") if row == "a step with copies"]
    assert sides == ["on the device", "from workers", "from workers, pinned", "from workers, pinned, one ahead"]


def test_without_a_gpu_it_says_how_to_try_it_out(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        main(["reads"])
    assert "torch finds no GPU here; `--device cpu` tries the script out" in capsys.readouterr().err


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["red", "--device", "cpu"])
    assert f"no part is called red; there are {', '.join(PARTS)}" in capsys.readouterr().err


@pytest.mark.slow
def test_all_of_it(tmp_path):
    found = rows(tmp_path)
    assert found["weights that differ between ranks", "gloo, two processes"] == 0
    assert {row for row, _ in found} >= {"step bare", "step compiled", "step of two named optimizers", "a step, fsdp"}
