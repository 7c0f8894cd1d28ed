"""collect_stats: the files, the numbers, and that neither workers nor ranks change a bit of them."""

import functools
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from data_parts import LogEnergy, NotANumber, entries_of, write_recipe

from espnet3_lite.espnet.data.batch_stats import Collector
from espnet3_lite.espnet.data.collate import CommonCollateFn
from espnet3_lite.espnet.data.collect_stats import collect_stats
from espnet3_lite.espnet.data.dataset import CombinedDataset
from espnet3_lite.espnet.data.organizer import DataOrganizer
from espnet3_lite.espnet.data.samplers import build_batch_sampler
from espnet3_lite.exceptions import MisconfigurationException

HELPERS = Path(__file__).parents[2] / "helpers"
SPELL = {"_target_": "data_parts.Spell"}


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "recipe")


@pytest.fixture
def entries(recipe):
    return entries_of(recipe)


@pytest.fixture
def organizer(entries):
    return DataOrganizer(**entries, preprocessor=SPELL)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stats(folder, key="feats"):
    with np.load(folder / f"{key}_stats.npz") as arrays:
        return dict(arrays)


def directly(dataset):
    """Sums over the features of one utterance at a time, and their shapes."""
    model = LogEnergy().eval()
    features = []
    for index in range(len(dataset)):
        speech = torch.from_numpy(dataset[index]["speech"])[None]
        features.append(model.collect_feats(speech, torch.tensor([speech.shape[1]]))["feats"][0].double().numpy())
    frames = np.concatenate(features)
    return len(frames), frames.sum(axis=0), (frames**2).sum(axis=0), [f.shape for f in features]


def test_files_and_numbers(organizer, tmp_path):
    collect_stats(LogEnergy(), organizer, tmp_path / "stats", batch_size=3)
    names = ["batch_keys", "feats_lengths_shape", "feats_lengths_stats.npz", "feats_shape", "feats_stats.npz"]
    names += ["speech_shape", "stats_keys", "text_shape"]
    assert sorted(contents(tmp_path / "stats")) == [f"{mode}/{name}" for mode in ("train", "valid") for name in names]
    for mode, dataset in (("train", organizer.train), ("valid", organizer.valid)):
        folder = tmp_path / "stats" / mode
        count, first, second, shapes = directly(dataset)
        found = stats(folder)
        assert (found["count"], found["count"].dtype) == (count, np.int64)
        assert found["sum"].dtype == found["sum_square"].dtype == np.float64
        np.testing.assert_allclose(found["sum"], first, rtol=1e-10)
        np.testing.assert_allclose(found["sum_square"], second, rtol=1e-10)
        lines = [f"{i} {shape[0]},{shape[1]}" for i, shape in enumerate(shapes)]
        assert (folder / "feats_shape").read_text().splitlines() == lines
        lengths = [len(dataset[i]["speech"]) for i in range(len(dataset))]
        assert (folder / "speech_shape").read_text().split() == [
            word for i, length in enumerate(lengths) for word in (str(i), str(length))
        ]
        assert (folder / "batch_keys").read_text() == "speech\ntext\n"
        assert (folder / "stats_keys").read_text() == "feats\nfeats_lengths\n"
        lengths_of_features = stats(folder, "feats_lengths")
        assert (lengths_of_features["count"], lengths_of_features["sum"]) == (len(dataset), count)
        assert (folder / "feats_lengths_shape").read_text().splitlines()[1] == "1 1"


def test_shape_files_make_batches_of_the_data_set(organizer, tmp_path):
    collect_stats(LogEnergy(), organizer, tmp_path)
    sampler = build_batch_sampler("numel", batch_bins=120, shape_files=[tmp_path / "train" / "feats_shape"])
    samples = [organizer.train[key] for batch in sampler for key in batch]
    assert sorted(len(sample["speech"]) for sample in samples) == sorted(
        len(organizer.train[i]["speech"]) for i in range(8)
    )


@pytest.mark.parametrize("preprocessor", ["Spell", pytest.param("Jitter", marks=pytest.mark.slow)])
def test_two_workers_give_the_same_bits(entries, tmp_path, preprocessor):
    organizer = DataOrganizer(**entries, preprocessor={"_target_": f"data_parts.{preprocessor}"})
    for workers in (1, 2):
        parallel = {"env": "local", "n_workers": workers, "options": {}}
        collect_stats(LogEnergy(), organizer, tmp_path / str(workers), batch_size=3, train_mode=True, parallel=parallel)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_augmentation_only_when_asked(entries, tmp_path):
    organizer = DataOrganizer(**entries, preprocessor={"_target_": "data_parts.Jitter"})
    for name, settings in {"off": {}, "on": {"train_mode": True}, "again": {"train_mode": True, "seed": 0}}.items():
        collect_stats(LogEnergy(), organizer, tmp_path / name, **settings)
    found = {name: stats(tmp_path / name / "train")["sum"] for name in ("off", "on", "again")}
    expected = directly(DataOrganizer(**entries, preprocessor=SPELL).train)[1]
    np.testing.assert_allclose(found["off"], expected, rtol=1e-10)
    assert (found["on"] == found["again"]).all()
    assert not np.allclose(found["on"], found["off"])


def test_leaves_no_traces(organizer, tmp_path):
    model = LogEnergy().train()
    model.dropout.eval()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    threads = torch.get_num_threads()
    collect_stats(model, organizer, tmp_path)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert (model.training, model.dropout.training) == (True, False)
    assert torch.get_num_threads() == threads
    assert organizer.train.use_espnet_collator is False
    assert torch.is_grad_enabled()


def test_streams_without_lengths_and_other_collate_functions(tmp_path):
    class Pooled(torch.nn.Module):
        def collect_feats(self, x, x_lengths, label):
            return {"embedding": x.sum(1), "x": x, "x_lengths": x_lengths}

    samples = [{"x": np.full((n, 2), n, np.float32), "label": np.array([n])} for n in (1, 2, 3)]
    collate = CommonCollateFn(not_sequence=["label"])
    collect_stats(Pooled(), {"train": samples}, tmp_path, collate, batch_size=2, modes=["train"])
    folder = tmp_path / "train"
    assert (folder / "embedding_shape").read_text() == "0 1,2\n1 1,2\n2 1,2\n"
    assert (folder / "label_shape").read_text() == "0 1\n1 1\n2 1\n"
    assert (folder / "x_shape").read_text() == "0 1,2\n1 2,2\n2 3,2\n"
    assert stats(folder, "embedding")["sum_square"].tolist() == [1 + 16 + 81] * 2
    assert stats(folder, "x")["count"] == 6


def test_utterance_ids_of_the_data_set(tmp_path):
    class Raw(torch.nn.Module):
        def collect_feats(self, x, x_lengths):
            return {"feats": x, "feats_lengths": x_lengths}

    samples = {"first": {"x": np.ones((1, 2))}, "second": {"x": np.ones((5, 2))}}
    data = {"train": CombinedDataset([samples], [(None, None)]), "valid": [("given", {"x": np.ones((3, 2))})]}
    collect_stats(Raw(), data, tmp_path)
    assert (tmp_path / "train" / "feats_shape").read_text() == "first 1,2\nsecond 5,2\n"
    assert (tmp_path / "valid" / "feats_shape").read_text() == "given 3,2\n"
    assert data["train"].use_espnet_collator is False


@pytest.mark.parametrize(("local_rank", "device"), [(None, "cuda:0"), ("0", "cuda:0"), ("3", "cuda:3")])
def test_each_rank_computes_on_a_gpu_of_its_own(local_rank, device, monkeypatch):
    class Moved(LogEnergy):
        devices = []

        def to(self, device):
            self.devices.append(str(device))
            return self

    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = Moved()
    with Collector(model, [], CommonCollateFn(), 1, 0).at_work():
        assert model.devices == [device]
    assert model.devices == [device, "cpu"]


def test_sums_do_not_lose_what_float32_would(tmp_path):
    class Raw(torch.nn.Module):
        def collect_feats(self, x, x_lengths):
            return {"feats": x, "feats_lengths": x_lengths}

    samples = [{"x": np.full((4, 1), 2.0**24 if i == 0 else 1.0, np.float32)} for i in range(50)]
    collect_stats(Raw(), {"train": samples}, tmp_path, modes=["train"])
    assert stats(tmp_path / "train")["sum"].tolist() == [4 * 2.0**24 + 4 * 49]


def test_a_new_run_replaces_the_files_and_leaves_no_others(organizer, tmp_path):
    collect_stats(LogEnergy(), organizer, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "train" / "feats_stats.npz").write_bytes(b"half a file")
    collect_stats(LogEnergy(), organizer, tmp_path)
    assert contents(tmp_path) == before


def test_a_log_file_gets_lines(organizer, tmp_path, capsys):
    collect_stats(LogEnergy(), organizer, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("%")[0] for line in lines] == ["collect_stats train: 100", "collect_stats valid: 100"]
    assert [count in line for count, line in zip(("8/8", "3/3"), lines, strict=True)] == [True, True]


def test_a_terminal_gets_a_bar(organizer, tmp_path, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    collect_stats(LogEnergy(), organizer, tmp_path)
    assert "\rcollect_stats train: 100%" in stream.getvalue() and "8/8" in stream.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stats_dir": None}, r"stats_dir is missing: .* `stats_dir: \$\{exp_dir\}/stats`"),
        ({"model": torch.nn.Linear(1, 1)}, r"Linear has no method collect_feats\(\*\*batch\)"),
        ({"batch_size": 0}, "collect_stats_batch_size must be an integer >= 1, got 0"),
        ({"parallel": {"env": "slurm", "n_workers": 4}}, "parallel.env: 'slurm' is not supported; .* torchrun"),
        ({"parallel": {"n_workers": "two"}}, "parallel.n_workers must be an integer >= 1, got 'two'"),
        ({"modes": ["trian"]}, "the data set 'trian' is missing"),
        ({"data": {"train": [], "valid": []}}, "the data set 'train' is empty"),
    ],
)
def test_what_is_missing_is_named(organizer, tmp_path, change, message):
    arguments = {"model": LogEnergy(), "data": organizer, "stats_dir": tmp_path / "stats", **change}
    with pytest.raises(MisconfigurationException, match=message):
        collect_stats(**arguments)
    assert not (tmp_path / "stats").exists()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_feature_that_is_no_number_is_named(organizer, tmp_path, workers):
    with pytest.raises(ValueError, match="the feature 'feats' of utterance '3' has NaN or Inf"):
        collect_stats(NotANumber(), organizer, tmp_path / "stats", parallel={"n_workers": workers})
    assert not (tmp_path / "stats").exists()


def test_what_cannot_be_sent_to_workers_is_named(organizer, tmp_path):
    model = LogEnergy()
    model.extra = lambda: None
    with pytest.raises(MisconfigurationException, match="n_workers=2 sends .* cannot be pickled: .*lambda"):
        collect_stats(model, organizer, tmp_path, parallel={"n_workers": 2})


def test_collate_function_of_another_kind(organizer, tmp_path):
    with pytest.raises(ValueError, match=r"returns \(uids, dict of tensors\); .* returned list"):
        collect_stats(LogEnergy(), organizer, tmp_path, collate_fn=list)


def test_features_that_come_and_go(tmp_path):
    class Fickle(torch.nn.Module):
        def collect_feats(self, x, x_lengths):
            return {"feats": x} if x[0, 0] > 3 else {"other": x}

    samples = [{"x": np.array([float(i)])} for i in range(8)]
    with pytest.raises(ValueError, match=r"\['x', 'other'\] at first, \['x', 'feats'\] .* utterance '4'"):
        collect_stats(Fickle(), {"train": samples}, tmp_path, modes=["train"])


def torchrun(recipe, output, failing):
    environment = {**os.environ, "PYTHONPATH": str(HELPERS), "OMP_NUM_THREADS": "1"}
    script = str(HELPERS / "collect_stats_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    return subprocess.run(
        [*command, str(recipe), str(output), failing], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_two_ranks_give_the_same_bits(organizer, recipe, tmp_path):
    result = torchrun(recipe, tmp_path / "ranks", "no")
    assert result.returncode == 0, result.stderr
    assert "rank 0 is done" in result.stdout and "rank 1 is done" in result.stdout
    assert "collect_stats train (rank 0 of 2): 100%" in result.stderr and "rank 1 of" not in result.stderr
    collect_stats(LogEnergy(), organizer, tmp_path / "one", batch_size=3)
    assert contents(tmp_path / "ranks") == contents(tmp_path / "one")


@pytest.mark.slow
def test_two_machines_give_the_same_bits(organizer, recipe, tmp_path):
    """Two agents of torchrun on this host, as two machines have one each, with a folder that both see."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(HELPERS), "OMP_NUM_THREADS": "1"}
    words = [str(HELPERS / "collect_stats_ranks.py"), str(recipe), str(tmp_path / "ranks"), "no"]
    agents = []
    for node in range(2):
        place = ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
        place += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        command = [sys.executable, "-m", "torch.distributed.run", *place, *words]
        agents.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    said = [agent.communicate(timeout=120)[0].decode() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "rank 0 is done" in said[0] and "rank 1 is done" in said[1]
    collect_stats(LogEnergy(), organizer, tmp_path / "one", batch_size=3)
    assert contents(tmp_path / "ranks") == contents(tmp_path / "one")


SLOW = """
import os, time, numpy, torch
class Data:
    def __len__(self):
        return 10_000
    def __getitem__(self, index):
        open(f"worker{os.getpid()}", "a").close()
        time.sleep(0.05)
        return {"speech": numpy.ones((3, 1), numpy.float32)}
class Model(torch.nn.Module):
    def collect_feats(self, **batch):
        return {"feats": batch["speech"]}
"""
SLOW_CONFIG = {
    "exp_dir": "exp", "stats_dir": "stats", "model": {"_target_": "slow.Model"},
    "dataset": {mode: {"_target_": "slow.Data"} for mode in ("train", "valid")},
    "dataloader": {mode: {"batch_size": 4} for mode in ("train", "valid")},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}, "parallel": {"env": "local", "n_workers": 2},
}  # fmt: skip


def is_running(process):
    status = Path(f"/proc/{process}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "name, code",
    [("TERM", -15), pytest.param("KILL", -9, marks=pytest.mark.slow), pytest.param("INT", 130, marks=pytest.mark.slow)],
)
def test_what_ends_the_command_ends_its_workers(name, code, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "train.json").write_text(json.dumps(SLOW_CONFIG))  # which is YAML too
    command = [sys.executable, "-m", "espnet3_lite", "collect-stats", "train.json"]
    more = {"cwd": tmp_path, "stderr": subprocess.PIPE, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    # Whoever runs the tests in the background may ignore Ctrl-C, and a new process would do so too.
    heeds_ctrl_c = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=heeds_ctrl_c, **more)

    def wait_until(condition, message):
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until, message
            time.sleep(0.05)

    def workers():
        return [int(path.name[6:]) for path in tmp_path.glob("worker*")]

    try:
        wait_until(lambda: len(workers()) == 2 or process.poll() is not None, "no workers")
        if name == "INT":  # Ctrl-C on a terminal comes to all processes
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid, getattr(signal, f"SIG{name}"))
        assert process.wait(60) == code
        wait_until(lambda: not any(map(is_running, workers())), "a worker waits for work that nobody hands out")
    finally:
        for worker in filter(is_running, workers()):
            os.kill(worker, signal.SIGKILL)
    assert b"Traceback" not in process.stderr.read() and not (tmp_path / "stats").exists()


@pytest.mark.slow
def test_a_rank_that_fails_ends_all(recipe, tmp_path):
    result = torchrun(recipe, tmp_path / "ranks", "yes")
    assert result.returncode != 0
    assert "ValueError: the feature 'feats' of utterance" in result.stderr
    assert "is done" not in result.stdout
    assert not (tmp_path / "ranks").exists()


@pytest.mark.slow
@pytest.mark.skipif("FSDD" not in os.environ, reason="FSDD names no folder of recordings")
def test_fsdd(entries, tmp_path):
    """Real recordings: a direct computation, and ESPnet's files of the same 150 recordings."""
    files = sorted(Path(os.environ["FSDD"]).glob("*.wav"))
    assert len(files) == 3000

    class Recordings(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            with wave.open(str(files[index])) as file:
                samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
            return {"speech": samples.astype(np.float32) / 32768}

    collect_stats(LogEnergy(), {"train": Recordings()}, tmp_path, batch_size=8, modes=["train"])
    count, first, second, _ = directly(Recordings())
    found = stats(tmp_path / "train")
    assert found["count"] == count
    np.testing.assert_allclose(found["sum"], first, rtol=1e-10)
    np.testing.assert_allclose(found["sum_square"], second, rtol=1e-10)
    golden = Path(__file__).parents[2] / "golden" / "batches" / "train_speech_shape"
    ours = (tmp_path / "train" / "speech_shape").read_text().splitlines()[::20]
    assert [line.split()[1] for line in ours] == [line.split()[1] for line in golden.read_text().splitlines()]
