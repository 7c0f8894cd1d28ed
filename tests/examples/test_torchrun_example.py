"""The torchrun lesson: configuration, commands and script; slow: two real processes on made-up recordings."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from torch.distributed.run import get_args_parser

from espnet3_lite.cli.commands import _parse
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


def test_every_command_in_the_pages_is_one_that_torchrun_and_our_parser_take(at_root, tmp_path):
    """And the configurations that are there are right."""
    pages = [page.read_text(encoding="utf-8") for page in LESSON.glob("*.md")]
    commands = [line for page in pages for line in page.splitlines() if line.startswith("torchrun ")]
    assert len(commands) == 3
    for command in commands:
        parsed = get_args_parser().parse_args(shlex.split(command.replace("<folder>", str(tmp_path)))[1:])
        assert (parsed.module, parsed.training_script) == (True, "espnet3_lite")
        words = _parse(parsed.training_script_args).config
        files, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
        if files != ["conf/training.yaml"]:
            check_config(load_config(*files, overrides=overrides))
    links = {link for page in pages for link in re.findall(r"\]\(([^)]+)\)", page)}
    assert all((LESSON / link).exists() for link in links) and {"two.yaml", "slurm.sh"} <= links


def test_the_slurm_script_signals_its_own_job_saves_and_queues_again(tmp_path):
    """With Slurm's commands and torchrun faked: each writes down what it was called with."""
    fakes = {
        "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = requeue ] || echo node1',
        "scancel": 'echo "scancel $*" >> calls; kill -USR1 "$(cat step)"; kill -TERM "$(cat step)"',
        "srun": 'echo "srun $1" >> calls; shift; exec "$@"',
        "torchrun": "echo $$ > step.new; mv step.new step; trap 'echo \"TERM $*\" >> calls; exit 0' TERM; "
        "while true; do sleep 0.02; done",
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip
    script = subprocess.Popen(["bash", LESSON / "slurm.sh", "conf/training.yaml"], cwd=tmp_path, env=environment)
    while not (tmp_path / "step").exists():
        assert script.poll() is None
        time.sleep(0.01)
    script.send_signal(signal.SIGUSR1)
    assert script.wait(timeout=60) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[1:3] == ["srun --kill-on-bad-exit=1", "scancel --signal=USR1 17"]
    assert calls[3].startswith("TERM --nnodes 2 ") and calls[3].endswith(" -m espnet3_lite train conf/training.yaml")
    assert calls[4:] == ["scontrol requeue 17"], "queued again when the training, which SIGUSR1 left alive, was over"


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
