"""One run at a time in a folder: the second is refused by a message, and a killed one holds nothing."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from espnet3_lite.config import Config
from espnet3_lite.espnet import experiment, run_folder
from espnet3_lite.espnet.folder_lock import LOCK_FILE, locked
from espnet3_lite.exceptions import MisconfigurationException

HOLDER = """
import os, sys, time
from pathlib import Path
from espnet3_lite.espnet.folder_lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # as a loader's worker, which outlives its parent for a while
        time.sleep(30)
    print("held", flush=True)
    time.sleep(30)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is at work in the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


CONFIG = {"model": {"_target_": "torch.nn.Identity"}, "optimizer": {"_target_": "torch.optim.Adam"}}


def test_the_second_run_is_refused_with_the_firsts_machine_and_process(tmp_path, holder):
    message = rf"another run is at work in {tmp_path}: process {holder.pid} on {socket.gethostname()}\. Wait for it"
    with pytest.raises(MisconfigurationException, match=message):
        with locked(tmp_path):
            pass
    config = Config.create({**CONFIG, "exp_dir": str(tmp_path)})
    for fresh in (False, True):
        with pytest.raises(MisconfigurationException, match=message):
            experiment.prepare(config, fresh=fresh)
    assert os.listdir(tmp_path) == [LOCK_FILE]


def test_a_killed_run_holds_nothing_though_its_workers_live_on(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
        with pytest.raises(MisconfigurationException, match="this one"):
            with locked(tmp_path):
                pass
    assert os.listdir(tmp_path) == []
    with locked(tmp_path):
        pass


def test_where_the_file_system_has_no_locks_a_warning_says_so(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    entered = False
    with pytest.warns(UserWarning, match="cannot be locked .*No locks available.*no other run uses this folder"):
        with locked(tmp_path):
            entered = True
    assert entered


def test_a_folder_that_takes_no_file(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.warns(UserWarning, match="takes no lock"):
        with locked(tmp_path):
            pass


def test_fresh_on_a_symbolic_link_renames_what_it_names_and_keeps_the_link(tmp_path):
    big = tmp_path / "big disk" / "exp"
    big.mkdir(parents=True)
    (big / "old").write_text("x")
    (tmp_path / "exp").symlink_to(big, target_is_directory=True)
    config = Config.create({**CONFIG, "exp_dir": str(tmp_path / "exp")})
    assert experiment.prepare(config, fresh=True) == tmp_path / "exp"
    assert (tmp_path / "exp").is_symlink() and (tmp_path / "exp").resolve() == big
    assert os.listdir(big) == []
    (aside,) = [path for path in big.parent.iterdir() if path != big]
    assert (aside / "old").read_text() == "x"
    big.rmdir()  # a link that leads nowhere yet
    assert experiment.prepare(config) == tmp_path / "exp" and big.is_dir()


def test_a_lock_alone_is_no_old_run(tmp_path):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / LOCK_FILE).touch()
    assert run_folder.put_aside(tmp_path / "exp") is None


def test_home_in_exp_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert experiment.prepare(Config.create({**CONFIG, "exp_dir": "~/exp"})) == tmp_path / "exp"
    assert time.time() - (tmp_path / "exp").stat().st_mtime < 60
