"""`average_checkpoints`: files in, one file out; wrappers, ties, deleted and sharded files, memory."""

import logging
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint

import espnet3_lite
from espnet3_lite.callbacks.checkpoints.averaging import average_checkpoints
from espnet3_lite.checkpoint.files import CheckpointError, load_checkpoint, save_checkpoint
from espnet3_lite.checkpoint.sharded import shardable


def write(folder, state_dicts, **more):
    """Save one checkpoint a state dict; `more` goes into each."""
    paths = []
    for number, state_dict in enumerate(state_dicts):
        paths.append(folder / f"{number}.ckpt")
        save_checkpoint({"epoch": number, "state_dict": state_dict, **more}, paths[-1])
    return paths


def ours(prefix):
    return {"loops": {"fit_loop": {}, "espnet3_lite": {"wrapper_prefix": prefix}}}


def ones_and_threes(*keys):
    return [{key: torch.full((2,), value) for key in keys} for value in (1.0, 3.0)]


def test_the_average_loads_into_the_model_and_is_a_plain_state_dict(tmp_path):
    models = [torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)) for _ in range(3)]
    for model in models:
        model(torch.randn(4, 3))
    output = tmp_path / "exp" / "valid.loss.ave_3best.pth"
    averaged = average_checkpoints(write(tmp_path, [model.state_dict() for model in models]), output)
    read = torch.load(output, weights_only=True)
    assert list(read) == list(averaged) == list(models[0].state_dict())
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model.load_state_dict(read)
    expected = sum(one[0].weight.detach().double() for one in models) / 3
    assert (model[0].weight - expected).abs().max() < 1e-7
    assert model[1].num_batches_tracked.item() == 3
    assert os.listdir(tmp_path / "exp") == ["valid.loss.ave_3best.pth"]


def test_it_is_a_public_name():
    assert espnet3_lite.average_checkpoints is average_checkpoints


@pytest.mark.parametrize(
    "keys, more, argument, expected",
    [
        # Ours say it.
        (["model.w", "loss.w"], ours("model."), None, ["w"]),
        (["model.w", "head.w"], ours(""), None, ["model.w", "head.w"]),
        (["model.model.w", "model.b"], ours("model."), None, ["model.w", "b"]),
        (["model.w"], ours(""), None, ["model.w"]),
        # Others do not.
        (["model.w", "model.b"], {}, None, ["w", "b"]),
        (["model.w", "loss.w"], {}, None, ["w"]),
        (["w", "b"], {}, None, ["w", "b"]),
        (["models.w", "modeling"], {}, None, ["models.w", "modeling"]),
        # The caller knows better.
        (["model.w", "head.w"], {}, "", ["model.w", "head.w"]),
        (["net.w", "head.w"], {}, "net.", ["w"]),
    ],
)
def test_a_wrapper_s_prefix_is_stripped_and_its_own_keys_left_out(tmp_path, keys, more, argument, expected):
    averaged = average_checkpoints(write(tmp_path, ones_and_threes(*keys), **more), wrapper_prefix=argument)
    assert list(averaged) == expected
    assert all(value.tolist() == [2, 2] for value in averaged.values())


def test_leaving_keys_out_on_a_guess_is_warned_about(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        average_checkpoints(write(tmp_path, ones_and_threes("model.w", "a", "b", "c", "d", "e", "f")))
    assert caplog.messages == [
        f"{tmp_path}/{number}.ckpt does not say whether its model is wrapped: keys that begin with 'model.' are taken "
        "for the model's, and left out are a, b, c, d, e and 1 more. If these belong to the model, give "
        "wrapper_prefix=''"
        for number in (0, 1)
    ]
    caplog.clear()
    average_checkpoints(write(tmp_path, ones_and_threes("model.w", "a"), **ours("model.")))
    assert caplog.messages == []


def test_plain_state_dicts_are_taken_as_they_are(tmp_path):
    for number, state_dict in enumerate(ones_and_threes("model.w")):
        torch.save(state_dict, tmp_path / f"{number}.pth")
    averaged = average_checkpoints([str(tmp_path / "0.pth"), tmp_path / "1.pth"])
    assert averaged["model.w"].tolist() == [2, 2]


def test_deleted_ones_are_left_out_with_a_warning(tmp_path, caplog):
    paths = write(tmp_path, [{"w": torch.full((1,), value), "n": torch.tensor(1)} for value in (1.0, 3.0, 8.0)])
    paths[2].unlink()
    with caplog.at_level(logging.WARNING):
        averaged = average_checkpoints(paths)
    assert (averaged["w"].item(), averaged["n"].item()) == (2.0, 2)
    assert caplog.messages[0] == f"{paths[2]} was deleted meanwhile and is left out of the average"
    for path in paths[:2]:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint to average is left of .*0\.ckpt, .*2\.ckpt"):
        average_checkpoints(paths, tmp_path / "out.pth")
    with pytest.raises(ValueError, match="no checkpoints to average"):
        average_checkpoints([])
    assert os.listdir(tmp_path) == []


def test_keys_that_differ_and_damaged_files_are_named_and_nothing_is_written(tmp_path):
    paths = write(tmp_path, [{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    with pytest.raises(KeyError, match=r"1\.ckpt: its keys differ from those of .*0\.ckpt: missing \['a'\]"):
        average_checkpoints(paths, tmp_path / "out.pth")
    os.truncate(paths[1], 300)
    with pytest.raises(CheckpointError, match=r"1\.ckpt: truncated"):
        average_checkpoints(paths, tmp_path / "out.pth")
    assert sorted(os.listdir(tmp_path)) == ["0.ckpt", "1.ckpt"]


def test_tied_weights_are_stored_once(tmp_path):
    def tied(value):
        weight = torch.full((100, 100), value)
        return {"embedding.weight": weight, "output.weight": weight}

    average_checkpoints(write(tmp_path, [tied(1.0), tied(2.0)]), tmp_path / "out.pth")
    read = load_checkpoint(tmp_path / "out.pth")
    assert read["embedding.weight"].data_ptr() == read["output.weight"].data_ptr()
    assert read["output.weight"].unique().tolist() == [1.5]
    assert (tmp_path / "out.pth").stat().st_size < 45_000


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flattened", [True, False])
def test_sharded_checkpoints_are_averaged_alone_and_beside_plain_ones(tmp_path, flattened):
    paths = []
    for value in (1.0, 3.0):
        checkpoint = {
            "state_dict": {"model.w": torch.full((4,), value), "loss.w": torch.ones(1)},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": []}],
            **ours("model."),
        }
        paths.append(tmp_path / f"{value}.ckpt")
        checkpoint = shardable(checkpoint) if flattened else checkpoint
        distributed_checkpoint.save(checkpoint, checkpoint_id=paths[-1])
    assert average_checkpoints(paths, tmp_path / "out.pth") == {"w": pytest.approx(torch.full((4,), 2.0))}
    plain = write(tmp_path, [{"model.w": torch.full((4,), 8.0)}], **ours("model."))
    assert average_checkpoints([*paths, *plain])["w"].tolist() == [4, 4, 4, 4]
    assert sorted(os.listdir(tmp_path)) == ["0.ckpt", "1.0.ckpt", "3.0.ckpt", "out.pth"]


MEASURE = """
import sys, threading
import torch
from espnet3_lite.callbacks.checkpoints.averaging import average_checkpoints

def anonymous_memory():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024

average_checkpoints(sys.argv[1:3])  # what torch itself takes on first use
done, peak, before = threading.Event(), 0, anonymous_memory()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous_memory())

watcher = threading.Thread(target=watch)
watcher.start()
averaged = average_checkpoints(sys.argv[3:], "average.pth")
done.set()
watcher.join()
print((peak - before) / sum(value.nbytes for value in averaged.values()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="measured where Linux tells it")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tensors", [1, 20])
def test_it_takes_at_most_1_2_times_the_model_s_memory(tmp_path, dtype, tensors):
    """Five models of 200 MB; mapped files are not private memory, what is written is."""
    elements = 200_000_000 // dtype.itemsize // tensors // 1000
    models = ({f"{key}.weight": torch.randn(elements, 1000).to(dtype) for key in range(tensors)} for _ in range(5))
    paths = write(tmp_path, models)
    (tmp_path / "small").mkdir()
    first = write(tmp_path / "small", [{"w": torch.ones(1)}] * 2)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, first), *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert 0.95 < float(run.stdout) < 1.2


def test_one_path_is_no_list_of_paths(tmp_path):
    """Its letters were taken for files, and those that are missing left out."""
    (path,) = write(tmp_path, [{"w": torch.ones(1)}])
    for one in (path, str(path)):
        with pytest.raises(TypeError, match="give a list of paths, the best first"):
            average_checkpoints(one)
