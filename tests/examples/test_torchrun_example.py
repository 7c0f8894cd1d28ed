"""The torchrun lesson: configuration, commands and script; slow: two real processes on made-up recordings."""

import json
import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from espnet3_lite.config import load_config
from espnet3_lite.config.schema import check_config

ROOT = Path(__file__).parents[2]
LESSON = ROOT / "examples" / "torchrun"
ALONE = "examples/spoken_digits/train.yaml"


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_two_processes_take_what_one_takes(at_root):
    alone = load_config(ALONE, overrides=["data_dir=recordings"])
    two = load_config(ALONE, "examples/torchrun/two.yaml", overrides=["data_dir=recordings"])
    check_config(two)
    for split in ("train", "valid"):
        assert two.dataloader[split].batch_size * two.trainer.devices == alone.dataloader[split].batch_size
    assert two.scheduler == alone.scheduler and two.exp_dir != alone.exp_dir


def test_every_command_in_the_pages_starts_our_command_line():
    pages = [page.read_text(encoding="utf-8") for page in LESSON.glob("*.md")]
    commands = [line for page in pages for line in page.splitlines() if line.startswith("torchrun ")]
    assert len(commands) == 3 and all(" -m espnet3_lite train " in command for command in commands)
    files = re.findall(r"examples/\S+\.yaml", " ".join(commands))
    assert files and all((ROOT / file).is_file() for file in files)
    links = {link for page in pages for link in re.findall(r"\]\(([^)]+)\)", page)}
    assert all((LESSON / link).exists() for link in links) and {"two.yaml", "slurm.sh"} <= links


def test_the_slurm_script_is_bash_and_signals_the_ranks_alone():
    script = LESSON / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    pattern = re.search(r"pkill -USR1 .* '(.+)'", script.read_text(encoding="utf-8"))[1]
    assert re.search(pattern, f"{sys.executable} -u -m espnet3_lite train conf/training.yaml")  # as torchrun starts it
    assert not re.search(pattern, "python -m torch.distributed.run --nnodes 2 -m espnet3_lite train conf/training.yaml")


def write_recordings(folder):
    """Two digits of one speaker, with every index from 0 to 49, as tones."""
    for digit in (3, 7):
        for index in range(50):
            tone = 8000 * np.sin(np.arange(1600 + 40 * index) * 0.2 * (1 + digit))
            with wave.open(str(folder / f"{digit}_ada_{index}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes(tone.astype("<i2").tobytes())


@pytest.mark.slow
def test_the_lesson_trains_on_two_processes_and_goes_on_in_one(tmp_path):
    write_recordings(tmp_path)
    train = [
        "-m", "espnet3_lite", "train", ALONE, "examples/torchrun/two.yaml", f"data_dir={tmp_path}",
        f"exp_dir={tmp_path}/exp", "scheduler.steps_per_epoch=10",
    ]  # fmt: skip
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*two, *train, "trainer.max_epochs=2"], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=200
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("train: 80 samples of Dataset") == 1  # rank zero alone
    assert "trained 2 epochs, 6 steps" in run.stdout  # 80 recordings, 2 x 16 a step
    assert json.loads((tmp_path / "exp" / "status.json").read_text())["status"] == "finished"
    assert list((tmp_path / "exp").glob("valid.cer.ave_*best.pth"))

    rest = subprocess.run(
        [sys.executable, *train, "trainer.max_epochs=3", "dataloader.train.batch_size=32"],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=200,
    )  # fmt: skip
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert "trained 3 epochs, 9 steps" in rest.stdout
