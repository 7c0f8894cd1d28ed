"""Checkpoints on disk: whole or not at all, and refused when damaged or unsafe. Averaging has a file of its own."""

import datetime
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path, PurePosixPath

import numpy
import pytest
import torch

from espnet3_lite.checkpoint.files import (
    CheckpointError,
    damage,
    load_checkpoint,
    newest_intact,
    save_checkpoint,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "lightning_files"


def small(value=1.0):
    return {"epoch": 3, "state_dict": {"w": torch.full((50,), value)}, "callbacks": {"x": {"best": 0.5}}}


def test_what_is_saved_is_loaded_by_us_and_by_torch(tmp_path):
    path = tmp_path / "exp" / "last.ckpt"
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "loops": {"best": numpy.float32(0.5), "folder": tmp_path},
    }
    save_checkpoint(checkpoint, path)
    for read in (load_checkpoint(path), load_checkpoint(str(path), mmap=True), torch.load(path, weights_only=True)):
        assert read["epoch"] == 3 and read["loops"] == {"best": 0.5, "folder": str(tmp_path)}
        assert torch.equal(read["state_dict"]["weight"], model.weight)
        assert read["state_dict"]._metadata == model.state_dict()._metadata
        assert torch.equal(read["optimizer_states"][0]["state"][0]["exp_avg"], optimizer.state[model.weight]["exp_avg"])
    assert os.listdir(tmp_path / "exp") == ["last.ckpt"]
    assert isinstance(checkpoint["loops"]["folder"], Path)  # the caller's own is left alone


def test_the_device_is_chosen_on_loading(tmp_path):
    save_checkpoint(small(), tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt", map_location="meta")["state_dict"]["w"].is_meta


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(small(1.0), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file may grow to 100,000 bytes; Python ignores the signal, and the write fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"last\.ckpt: the checkpoint could not be written: .*too large"):
            save_checkpoint({"state_dict": {"w": torch.ones(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert load_checkpoint(path)["state_dict"]["w"].sum() == 50


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"file/last\.ckpt: the checkpoint could not be written"):
        save_checkpoint(small(), tmp_path / "file" / "last.ckpt")


def test_what_could_not_be_loaded_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['callbacks'\]\['fn'\] is a builtins"):
        save_checkpoint({"callbacks": {"fn": print}}, tmp_path / "exp" / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save_checkpoint(small(1.0), path)

    def interrupted(checkpoint, file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(small(2.0), path)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert load_checkpoint(path)["state_dict"]["w"].sum() == 50


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "last.ckpt"
    script = (
        "import sys, torch\n"
        "from espnet3_lite.checkpoint.files import save_checkpoint\n"
        "for number in range(10**6):\n"
        "    save_checkpoint({'state_dict': {'w': torch.full((300_000,), float(number))}}, sys.argv[1])\n"
        "    print(number, flush=True)\n"
    )
    for kill in range(2):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        for _ in range(2):
            process.stdout.readline()
        time.sleep(0.005 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        weights = load_checkpoint(path)["state_dict"]["w"]
        assert weights.shape == (300_000,) and weights.unique().numel() == 1
    save_checkpoint(small(), path)
    assert os.listdir(tmp_path) == ["last.ckpt"]  # the next save clears away what the killed ones left


def test_every_truncation_is_seen(tmp_path):
    save_checkpoint(small(), tmp_path / "a.ckpt")
    whole = (tmp_path / "a.ckpt").read_bytes()
    for length in [0, 1, 3, 4, 100, *range(200, len(whole), 97), len(whole) - 1]:
        (tmp_path / "a.ckpt").write_bytes(whole[:length])
        assert damage(tmp_path / "a.ckpt"), length
        with pytest.raises(CheckpointError, match=r"a\.ckpt: (truncated|not a checkpoint)"):
            load_checkpoint(tmp_path / "a.ckpt")


def test_a_flipped_byte_is_seen_or_harmless(tmp_path):
    checkpoint = {**small(), "state_dict": {"w": torch.randn(50)}}
    save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    whole = bytearray((tmp_path / "a.ckpt").read_bytes())
    refused = 0
    for position in range(0, len(whole), 3):
        whole[position] ^= 0xFF
        (tmp_path / "a.ckpt").write_bytes(whole)
        whole[position] ^= 0xFF
        try:
            read = load_checkpoint(tmp_path / "a.ckpt")
        except CheckpointError as error:
            assert str(error).startswith(f"{tmp_path}/a.ckpt: ")
            refused += 1
        else:  # it hit padding or a date
            assert read["callbacks"] == checkpoint["callbacks"]
            assert torch.equal(read["state_dict"]["w"], checkpoint["state_dict"]["w"])
    assert refused > 100


def test_a_flipped_weight_is_called_a_wrong_checksum(tmp_path):
    save_checkpoint(small(), tmp_path / "a.ckpt")
    whole = bytearray((tmp_path / "a.ckpt").read_bytes())
    whole[whole.index(torch.ones(50).numpy().tobytes()) + 7] ^= 1
    (tmp_path / "a.ckpt").write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"damaged: the checksum \(CRC\) of 'archive/data/0' is wrong"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_a_weight_that_is_marked_as_a_folder_is_seen(tmp_path):
    """torch reads nothing from such an entry, says nothing, and returns memory as it found it."""
    save_checkpoint(small(), tmp_path / "a.ckpt")
    whole = bytearray((tmp_path / "a.ckpt").read_bytes())
    entry = whole.rindex(b"archive/data/0") - 46  # in the table of contents, whose fixed part has 46 bytes
    assert whole[entry : entry + 4] == b"PK\x01\x02"
    whole[entry + 38] = 0x10
    (tmp_path / "a.ckpt").write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: damaged: 'archive/data/0' is marked as a folder"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.ckpt: does not exist"):
        load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello, world")
    with pytest.raises(CheckpointError, match=r"text\.ckpt: not a checkpoint: it does not begin as an archive"):
        load_checkpoint(tmp_path / "text.ckpt")
    numpy.savez(tmp_path / "arrays.npz", a=numpy.ones(2))
    with pytest.raises(CheckpointError, match=r"arrays\.npz: not a checkpoint: an archive without data\.pkl"):
        load_checkpoint(tmp_path / "arrays.npz")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match=r"list\.ckpt: not a checkpoint but a list; a dict is expected"):
        load_checkpoint(tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="is neither a file nor a folder"):
        load_checkpoint("/dev/null")


def test_states_of_one_moment_are_compared_only_if_they_have_the_same_keys(tmp_path, monkeypatch):
    """Weights alone and the whole state, saved one after the other, are not pickled a third time to see that."""
    pickled, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda *given, **named: (pickled.append(1), save(*given, **named)))
    weights = {"epoch": 1, "global_step": 2, "state_dict": {"w": torch.ones(2)}}
    whole = {**weights, "optimizer_states": []}
    for name, state, pickles in (("best", weights, 1), ("step", whole, 2), ("last", whole, 3), ("again", weights, 4)):
        save_checkpoint(state, tmp_path / name)
        assert len(pickled) == pickles
    assert (tmp_path / "step").samefile(tmp_path / "last")
    assert not (tmp_path / "best").samefile(tmp_path / "step")


def test_the_first_whole_one_is_taken_and_damaged_ones_are_warned_about(tmp_path, caplog):
    paths = [tmp_path / f"step{step}.ckpt" for step in (9, 6, 3)]
    for path in paths:
        save_checkpoint(small(), path)
    with caplog.at_level(logging.WARNING):
        assert newest_intact(paths) == paths[0]
        assert caplog.messages == []
        os.truncate(paths[0], 200)
        paths[1].unlink()
        assert newest_intact(map(str, paths)) == str(paths[2])
    assert caplog.messages == [
        f"Checkpoint passed over. {paths[0]}: truncated: the archive's table of contents at its end is missing",
        f"Checkpoint passed over. {paths[1]}: does not exist",
    ]
    assert newest_intact(paths[:2]) is None
    assert newest_intact([]) is None


# --- Files that Lightning wrote ---------------------------------------------------------------------------------------

CONF = {"a": {"b": 1, "c": [1, 2.5, None, "x", "${a.b}", True]}, "p": "${a.b}"}


def test_omegaconf_containers_are_read_as_dicts_and_lists():
    read = load_checkpoint(GOLDEN / "omegaconf.ckpt")
    assert read["hyper_parameters"] == {"conf": CONF, "items": CONF["a"]["c"]}
    assert type(read["hyper_parameters"]["conf"]["a"]) is dict
    interval = "datetime.timedelta(seconds=3600)"
    name = "ModelCheckpoint{'monitor': None, 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 0, "
    assert read["callbacks"][f"{name}'train_time_interval': {interval}}}"]["best_k_models"] == {}
    assert read["callbacks"]["EarlyStopping{'monitor': 'valid/loss', 'mode': 'min'}"]["patience"] == 3
    assert set(read["callbacks"]["Timer"]["time_elapsed"]) >= {"train", "validate"}
    assert read["callbacks"]["StochasticWeightAveraging"]["n_averaged"] == 2
    assert (read["epoch"], read["global_step"], read["pytorch-lightning_version"]) == (2, 6, "2.6.6")
    assert read["optimizer_states"][0]["state"][0]["exp_avg"].shape == (1, 2)


def test_an_omegaconf_container_at_the_top_is_read_and_its_class_left_out():
    read = load_checkpoint(GOLDEN / "omegaconf_at_the_top.ckpt")
    assert read["hyper_parameters"] == CONF
    assert read["hparams_type"] is None
    (checkpoint_callback,) = read["callbacks"].values()
    assert len(checkpoint_callback["best_k_models"]) == 2


def test_harmless_objects_in_the_hyper_parameters_are_read():
    read = load_checkpoint(GOLDEN / "many_types.ckpt")["hyper_parameters"]
    numpy.testing.assert_array_equal(read.pop("array"), numpy.arange(6, dtype="f4").reshape(2, 3))
    numpy.testing.assert_array_equal(read.pop("fortran"), numpy.arange(6).reshape(2, 3))
    numpy.testing.assert_array_equal(read.pop("big_endian"), [1, 2])
    assert read == {
        "rate": 1e-3,
        "path": Path("/data/x"),
        "pure_path": PurePosixPath("a/b"),
        "float32": 0.5,
        "float64": 2.5,
        "int64": 3,
        "boolean": True,
        "default_dict": {"a": [1]},
        "ordered": {"a": 1},
        "duration": datetime.timedelta(seconds=3),
        "date": datetime.datetime(2024, 1, 2),
        "members": {1, 2},
        "frozen": frozenset({1}),
        "queue": [1, 2],
        "section": slice(1, 2),
        "inner": Namespace(depth=1),
        "shape": (torch.Size([2]), torch.float32, torch.device("cpu")),
    }


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for mmap in (None, True):
        with pytest.raises(
            CheckpointError, match=r"malicious\.ckpt: holds pickled objects of .*getattr, pathlib\.Path"
        ):
            load_checkpoint(GOLDEN / "malicious.ckpt", mmap=mmap)
    assert os.listdir(tmp_path) == []
    torch.load(GOLDEN / "malicious.ckpt", weights_only=False)  # the file does what it is refused for
    assert os.listdir(tmp_path) == ["run_by_a_pickle"]


def test_objects_that_are_not_on_the_list_are_named(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"loss": torch.nn.MSELoss()}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"objects of torch\.nn\.modules\.loss\.MSELoss, which are not read"):
        load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 5")
def test_a_pickle_that_torch_cannot_follow_is_an_error_without_advice_to_run_it(tmp_path):
    torch.save({"number": 1}, tmp_path / "a.ckpt", pickle_protocol=5, pickle_module=pickle)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: its pickle is not one that torch\.save writes") as caught:
        load_checkpoint(tmp_path / "a.ckpt")
    assert "weights_only" not in str(caught.value)
