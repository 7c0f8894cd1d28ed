"""Sharded checkpoints: read whole, without code, also with several files and after damage."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint

from espnet3_lite.checkpoint import files
from espnet3_lite.checkpoint.files import consolidate, load_checkpoint, save_checkpoint
from espnet3_lite.checkpoint.sharded import PLAIN_ENTRY, load_sharded, read_metadata, shardable
from espnet3_lite.exceptions import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
GOLDEN = Path(__file__).parents[1] / "golden" / "lightning_files"


def a_checkpoint():
    """A checkpoint with all that torch's flattening does not keep: integer keys, empty dicts, tuples."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "state_dict": dict(model.state_dict()),
        "optimizer_states": [optimizer.state_dict(), torch.optim.SGD(model.parameters()).state_dict()],
        "lr_schedulers": [{"milestones": {3: 1}}],
        "callbacks": {},
        "loops": {"espnet3_lite": {"wrapper_prefix": "", "random": torch.get_rng_state()}},
    }


def assert_equal(one, other):
    assert type(one) is type(other), (one, other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    else:
        assert one == other


def save_sharded(values, folder):
    distributed_checkpoint.save(values, checkpoint_id=folder)
    return folder


def test_a_sharded_checkpoint_comes_back_as_it_was(tmp_path):
    checkpoint = a_checkpoint()
    folder = save_sharded(shardable(checkpoint), tmp_path / "step3.ckpt")
    assert files.damage(folder) is None
    assert_equal(load_checkpoint(folder), checkpoint)
    consolidate(folder, tmp_path / "plain.ckpt")
    assert_equal(torch.load(tmp_path / "plain.ckpt", weights_only=True), checkpoint)
    plain = {key: checkpoint[key] for key in ("epoch", "lr_schedulers", "callbacks", "loops")}
    assert_equal(load_sharded(folder, only=PLAIN_ENTRY), plain)
    assert_equal(load_sharded(folder, only="state_dict"), {"state_dict": checkpoint["state_dict"], **plain})


def test_one_that_was_saved_without_shardable_keeps_its_lists_and_its_optimizers(tmp_path):
    checkpoint = a_checkpoint()
    checkpoint["lr_schedulers"] = [{"gamma": 0.5}]
    folder = save_sharded(checkpoint, tmp_path / "step3.ckpt")
    read = load_checkpoint(folder)
    assert "callbacks" not in read  # torch does not keep an empty dict
    assert_equal(read, {key: value for key, value in checkpoint.items() if key != "callbacks"})
    assert_equal(load_sharded(folder, only="state_dict"), {"state_dict": checkpoint["state_dict"]})


def test_a_name_may_have_dots_and_one_that_is_not_there_means_all(tmp_path):
    whole = {"state_dict": {"a.w": torch.ones(2), "b": torch.zeros(1)}, "epoch": 1}
    folder = save_sharded(whole, tmp_path / "x")
    assert_equal(load_sharded(folder, only="state_dict"), {"state_dict": whole["state_dict"]})
    assert_equal(load_sharded(folder, only="weights"), whole)


@pytest.mark.slow
def test_files_of_two_ranks_make_one_checkpoint(tmp_path):
    script = (
        "import sys, torch, torch.distributed.checkpoint as dcp\n"
        "from espnet3_lite.distributed.group import join_process_group\n"
        "from torch.distributed.tensor import distribute_tensor, Shard, init_device_mesh\n"
        "join_process_group(torch.device('cpu'))\n"
        "mesh = init_device_mesh('cpu', (2,))\n"
        "weight = distribute_tensor(torch.arange(10.0).view(5, 2), mesh, [Shard(0)])\n"
        "dcp.save({'state_dict': {'w': weight}, 'plain': ({'epoch': 2},)}, checkpoint_id=sys.argv[1])\n"
    )
    (tmp_path / "save.py").write_text(script)
    folder = tmp_path / "step2.ckpt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run([*launch, str(tmp_path / "save.py"), str(folder)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert len(list(folder.glob("*.distcp"))) == 2
    expected = {"state_dict": {"w": torch.arange(10.0).view(5, 2)}, "epoch": 2}
    assert_equal(load_checkpoint(folder), expected)
    (folder / "__1_0.distcp").unlink()
    assert files.damage(folder) == f"{folder}: the data file __1_0.distcp is missing"
    with pytest.raises(CheckpointError, match="__1_0.distcp is missing"):
        load_checkpoint(folder)


def test_damage_is_named(tmp_path):
    folder = save_sharded({"state_dict": {"w": torch.ones(100)}}, tmp_path / "step1.ckpt")
    assert files.damage(folder) is None
    data = folder / "__0_0.distcp"
    size = data.stat().st_size
    os.truncate(data, size - 1)
    assert files.damage(folder) == f"{folder}: the data file __0_0.distcp is truncated: {size - 1} of {size} bytes"
    os.truncate(folder / ".metadata", 50)
    assert "damaged metadata" in files.damage(folder)
    (folder / ".metadata").unlink()
    assert files.damage(folder) == f"{folder}: no .metadata; not a sharded checkpoint, or its save did not finish"
    (folder / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    assert "not a sharded checkpoint's metadata but a dict" in files.damage(folder)


def test_data_of_the_right_length_but_overwritten_is_refused(tmp_path):
    folder = save_sharded({"state_dict": {"w": torch.ones(100)}}, tmp_path / "step1.ckpt")
    data = folder / "__0_0.distcp"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(CheckpointError, match="__0_0.distcp, at byte 0: not a checkpoint: it does not begin"):
        load_checkpoint(folder)


def test_a_flipped_bit_in_a_tensor_is_found_by_its_checksum(tmp_path):
    values = {"state_dict": {"v": torch.zeros(7), "w": torch.arange(100.0)}, "plain": ({"epoch": 2},)}
    folder = save_sharded(values, tmp_path / "step1.ckpt")
    data = folder / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[content.index(torch.arange(100.0).numpy().tobytes()) + 7] ^= 0x40
    data.write_bytes(content)
    offset = next(
        info.offset for index, info in read_metadata(folder).storage_data.items() if index.fqn == "state_dict.w"
    )
    expected = f"{folder}: the data file __0_0.distcp, at byte {offset}: damaged: the checksum (CRC) of "
    assert files.damage(folder).startswith(expected)
    assert files.damage(folder)
    with pytest.raises(CheckpointError, match="the checksum"):
        load_checkpoint(folder)
    found = [files.damage(folder, rank, 3) for rank in range(3)]
    assert sorted(map(bool, found)) == [False, False, True], "three processes share the work"


def test_metadata_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_sharded({"state_dict": {"w": torch.ones(1)}}, tmp_path / "step1.ckpt")
    malicious = (GOLDEN / "malicious.metadata").read_bytes()
    (folder / ".metadata").write_bytes(malicious)
    with pytest.raises(
        CheckpointError, match="it names pathlib.Path.touch, which has no place in a checkpoint's metadata"
    ):
        load_checkpoint(folder)
    assert files.damage(folder)
    assert not (tmp_path / "run_by_a_pickle").exists()
    pickle.loads(malicious)  # the file does what it is refused for
    assert (tmp_path / "run_by_a_pickle").exists()


class Touch:
    def __reduce__(self):
        return Path.touch, (Path("run_by_a_shard"),)


def test_shards_that_would_run_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_sharded({"state_dict": {"w": torch.ones(1)}, "extra": (Touch(),)}, tmp_path / "step1.ckpt")
    with pytest.raises(CheckpointError, match="step1.ckpt: its shards cannot be read"):
        load_checkpoint(folder)
    assert not (tmp_path / "run_by_a_shard").exists()


def test_consolidating_needs_a_sharded_folder(tmp_path):
    save_checkpoint({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="gone.ckpt: does not exist"):
        consolidate(tmp_path / "gone.ckpt", tmp_path / "out.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no .metadata"):
        consolidate(tmp_path / "empty", tmp_path / "out.ckpt")
    with pytest.raises(
        CheckpointError, match="no .metadata; not a sharded checkpoint; give one of its files, plain.ckpt"
    ):
        load_checkpoint(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["empty", "plain.ckpt"]
