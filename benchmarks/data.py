"""Batches: ESPnet's batch samplers on a million utterances; what batches by size save in padding."""

from __future__ import annotations

import math
import random
import wave
from pathlib import Path

import torch

from benchmarks.measuring import BY_HAND, Options, Row, Samples, interleaved, now
from espnet3_lite.espnet.data.samplers import build_batch_sampler

UTTERANCES = 1_000_000
BINS = {"numel": 4_000_000, "length": 60_000}


def _shape_files(options: Options) -> list[Path]:
    files = [options.folder / "speech_shape", options.folder / "text_shape"]
    if not files[0].exists():
        chance, count = random.Random(0), options.count(UTTERANCES)
        with files[0].open("w") as speech, files[1].open("w") as text:
            for number in range(count):
                key = f"speaker{number % 997:04d}-utterance{number:08d}"
                speech.write(f"{key} {chance.randint(100, 3000)},80\n")
                text.write(f"{key} {chance.randint(3, 300)}\n")
    return files


def by_dicts(files: list[Path], kind: str, batch_bins: int) -> list[tuple[str, ...]]:
    """The same batches as one writes them down, with dictionaries of lists."""
    streams = []
    for file in files:
        with file.open() as lines:
            rows = (line.split() for line in lines)
            streams.append({key: [int(number) for number in shape.split(",")] for key, shape in rows})
    cost_of = math.prod if kind == "numel" else (lambda shape: shape[0])
    batches, batch = [], []
    for key in sorted(streams[0], key=lambda key: streams[0][key][0]):
        batch.append(key)
        if len(batch) * sum(cost_of(shapes[key]) for shapes in streams) > batch_bins:
            batches.append(tuple(batch[::-1]))
            batch = []
    return batches + ([tuple(batch[::-1])] if batch else [])


def _sampler(options: Options, kind: str) -> Samples:
    files = _shape_files(options)
    found: dict[str, list[tuple[str, ...]]] = {}

    def by_hand() -> float:
        start = now()
        found[BY_HAND] = by_dicts(files, kind, BINS[kind])
        return now() - start

    def ours() -> float:
        start = now()
        found["espnet3_lite"] = list(build_batch_sampler(kind, batch_bins=BINS[kind], shape_files=files))
        seconds = now() - start
        if found["espnet3_lite"] != found[BY_HAND]:
            raise RuntimeError(f"the {kind} batches differ from those that are made by hand")
        return seconds

    return interleaved({BY_HAND: by_hand, "espnet3_lite": ours}, min(options.repetitions, 3))


def _padding(options: Options) -> Samples:
    """The share of padding in a pass over recordings, in percent: fixed batches against batches by size."""
    if options.recordings is None:
        return {}
    files = sorted(Path(options.recordings).rglob("*.wav"))
    lengths = {}
    for file in files:
        with wave.open(str(file)) as recording:
            lengths[file.stem] = recording.getnframes()
    if not lengths:
        raise FileNotFoundError(f"{options.recordings}: no *.wav file in it or below it")
    shapes = options.folder / "recordings_shape"
    shapes.write_text("".join(f"{name} {length}\n" for name, length in lengths.items()))
    names = list(lengths)
    fixed = [tuple(names[start : start + 32]) for start in range(0, len(names), 32)]
    bins = 32 * sum(lengths.values()) // len(lengths)
    sides = {"fixed": fixed}
    for kind in ("length", "numel"):
        sides[kind] = list(build_batch_sampler(kind, batch_bins=bins, shape_files=[shapes]))
    return {side: [_padded(batches, lengths)] for side, batches in sides.items()}


def _padded(batches: list[tuple[str, ...]], lengths: dict[str, int]) -> float:
    computed = sum(len(batch) * max(lengths[name] for name in batch) for batch in batches)
    return 100 * (1 - sum(lengths.values()) / computed)


def _throughput(options: Options) -> Samples:
    """Seconds for one pass over the recordings through a small convolution, each batch padded to its longest."""
    if options.recordings is None:
        return {}
    _padding(options)
    shapes = options.folder / "recordings_shape"
    lengths = {name: int(length) for name, length in map(str.split, shapes.read_text().splitlines())}
    names, layer = list(lengths), torch.nn.Conv1d(1, 16, 25, stride=10)
    bins = 32 * sum(lengths.values()) // len(lengths)
    by_size = list(build_batch_sampler("length", batch_bins=bins, shape_files=[shapes]))
    fixed = [tuple(names[start : start + 32]) for start in range(0, len(names), 32)]

    def one_pass(batches: list[tuple[str, ...]]) -> float:
        start = now()
        for batch in batches:
            layer(torch.zeros(len(batch), 1, max(lengths[name] for name in batch))).square().mean().backward()
        return (now() - start) / len(names)

    sides = {"fixed": lambda: one_pass(fixed), "by size": lambda: one_pass(by_size)}
    return interleaved(sides, options.repetitions)


ROWS = (
    Row("numel", "`numel` batches of 1,000,000 utterances, two shape files, against dicts of lists", None, "s",
        lambda options: _sampler(options, "numel")),
    Row("length", "`length` batches of the same", None, "s", lambda options: _sampler(options, "length")),
    Row("padding", "padding in fixed batches of 32 recordings, and in batches by size", None, "%", _padding),
    Row("throughput", "an utterance, forward and backward, in the same batches", None, "us", _throughput),
)  # fmt: skip
