"""Two agents of torchrun on this host, as two machines have one each: one loses its rank, or is lost itself."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import rank_two_machines
from rank_lab import torchrun
from rank_two_machines import BATCH_SIZE, EPOCHS, KILLED_AT, SAMPLES

EPOCH = SAMPLES // BATCH_SIZE  # batches of an epoch, for both ranks together


def train(folder, kill, nodes):
    """A run with two agents: their return codes, and the result of rank zero."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    place = ["--nnodes", nodes, "--nproc-per-node", "1", "--max-restarts", "2", "--rdzv-backend", "c10d"]
    place += ["--rdzv-endpoint", meeting, "--rdzv-id", "1"]
    words = [rank_two_machines.__file__, str(folder), kill]
    environment = {**os.environ, "PYTHONPATH": str(Path(rank_two_machines.__file__).parent), "OMP_NUM_THREADS": "1"}
    agents, logs = [], [folder / f"machine{node}.log" for node in range(2)]
    for node, log in enumerate(logs):  # the first, whose process number is lower, is rank zero and keeps the store
        settings = ["--rdzv-conf", f"last_call_timeout=3,is_host={int(node == 0)}"]
        command = [sys.executable, "-m", "torch.distributed.run", *place, *settings, *words]
        with open(log, "w") as file:
            agents.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    codes = [agent.wait(timeout=240) for agent in agents]
    said = "\n".join(log.read_text() for log in logs)
    assert (folder / "result.json").exists(), said
    return codes, said, json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_a_machine_that_loses_its_rank_starts_it_again_and_the_run_ends_with_the_same_bits(tmp_path):
    for name in ("alone", "one", "two"):
        (tmp_path / name).mkdir()
    alone = torchrun(2, "rank_two_machines.py", tmp_path / "alone", "nobody", timeout=240)
    assert alone.returncode == 0, alone.stdout
    whole = json.loads((tmp_path / "alone" / "result.json").read_text())
    assert whole["steps"] == EPOCHS * EPOCH // 2

    codes, said, undisturbed = train(tmp_path / "one", "nobody", "2")
    assert codes == [0, 0] and undisturbed == whole, said

    codes, said, resumed = train(tmp_path / "two", "rank", "2")
    assert (tmp_path / "two" / "killed").exists() and "Restored all states from the checkpoint" in said
    assert codes == [0, 0] and resumed == whole, said


@pytest.mark.slow
def test_a_run_goes_on_without_a_machine_that_is_lost(tmp_path):
    """The other agent meets alone, and its rank trains on what is left of the epoch's samples, each once."""
    codes, said, result = train(tmp_path, "agent", "1:2")
    assert sorted(codes) == [-signal.SIGKILL, 0], said
    saved = (KILLED_AT - 1) // 2 * 2  # a checkpoint is saved at every second step
    assert result["steps"] == saved + EPOCHS * EPOCH - 2 * saved, said
