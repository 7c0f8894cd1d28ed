"""collect_stats: how long every utterance is, and the sums from which mean and variance of the features
follow.

The files are ESPnet's; batch samplers read the shapes, normalisation layers the sums. What is computed for
one batch is in `batch_stats.py`. Nothing here knows the trainer.
"""

import copy
import math
import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from espnet3_lite.callbacks.showing.tqdm_bars import LINE_EVERY, LogLines, bar_for, writable
from espnet3_lite.checkpoint.atomic_files import replacing
from espnet3_lite.distributed.rank import global_rank, is_distributed, is_global_zero, world_size
from espnet3_lite.espnet.data.batch_stats import BatchStats, Collector, collect_batch, start_worker
from espnet3_lite.espnet.data.collate import CommonCollateFn
from espnet3_lite.exceptions import MisconfigurationException


def collect_stats(
    model: nn.Module,
    data: Any,
    stats_dir: str | Path | None,
    collate_fn: Callable | None = None,
    batch_size: int | None = None,
    train_mode: bool | None = None,
    parallel: Mapping[str, Any] | None = None,
    seed: int | None = None,
    modes: Sequence[str] = ("train", "valid"),
) -> None:
    """Run the model's ``collect_feats(**batch)`` over the data and write what ESPnet writes.

    Into ``stats_dir/<mode>``: for each stream of the batch and each feature, ``<key>_shape`` (lines
    ``utterance 312,80``, in data order); for each feature, ``<key>_stats.npz`` with `count` (frames; int64),
    `sum` and `sum_square` (float64, the feature's shape without its first axis); their names in `batch_keys`
    and `stats_keys`. A feature with ``<key>_lengths`` beside it is cut to its length, one without counts as
    one frame an utterance.

    Every bit of the result is the same for any number of workers or ranks: batches are consecutive samples,
    each computed with one thread and random numbers of its own, and merged in data order. Under torchrun, once
    the process group is joined, all ranks must call this: they share the work, and rank zero writes.

    Args:
        model: has ``collect_feats(**batch)``, which returns a dict of tensors of shape ``(batch, ...)``. It
            runs in eval mode and without gradients, on the GPU if there is one.
        data: a `DataOrganizer`, or a dict of data sets by mode.
        stats_dir: the folder to write to.
        collate_fn: makes ``(uids, dict of tensors)`` from a list of ``(uid, sample)``; default
            ``CommonCollateFn()``.
        batch_size: samples a batch; default 4.
        train_mode: whether the training set's preprocessor augments; default False, so that statistics are
            the same on every run. For a `DataOrganizer` only.
        parallel: a config's `parallel` block: ``env: local`` and `n_workers`, the number of processes;
            default 1. More than one are spawned: model and data must be picklable, and a script needs the
            usual
            ``if __name__ == "__main__"``. Under torchrun it is not looked at.
        seed: of the random numbers; default 0.
        modes: which splits.

    Raises:
        MisconfigurationException: `stats_dir` is missing, the model has no `collect_feats`, a split is
            missing or empty, or what several workers need cannot be pickled.
        ValueError: a feature is not finite, or a batch is not ``(uids, dict)``.

    >>> import tempfile
    >>> class Raw(nn.Module):
    ...     def collect_feats(self, speech, speech_lengths):
    ...         return {"feats": speech, "feats_lengths": speech_lengths}
    >>> samples = [{"speech": np.full((n, 1), n, dtype=np.float32)} for n in (1, 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     collect_stats(Raw(), {"train": samples}, folder, modes=["train"])
    ...     stats = np.load(f"{folder}/train/feats_stats.npz")
    ...     print(stats["count"], stats["sum"], stats["sum_square"])
    3 [5.] [9.]
    """
    batch_size = 4 if batch_size is None else batch_size
    n_workers = _number_of_workers(parallel)
    folder = _checked_folder(model, stats_dir, batch_size)
    if hasattr(data, "for_statistics"):
        data = data.for_statistics(train_mode=bool(train_mode))
    for mode in modes:
        dataset = data[mode] if isinstance(data, Mapping) and mode in data else getattr(data, mode, None)
        if dataset is None or len(dataset) == 0:
            found = "is empty" if dataset is not None else "is missing"
            raise MisconfigurationException(f"the data set {mode!r} {found}: nothing to collect statistics of")
        collector = Collector(model, _with_ids(dataset), collate_fn or CommonCollateFn(), batch_size, seed or 0)
        results = _run_share(collector, mode, n_workers)
        total = BatchStats.merged(results)
        if is_global_zero():
            _write(folder / mode, total)
    if is_distributed():
        dist.barrier()  # all ranks are here; none may read the files before rank zero has written them


def _checked_folder(model: Any, stats_dir: str | Path | None, batch_size: Any) -> Path:
    if stats_dir is None:
        raise MisconfigurationException(
            "stats_dir is missing: collect_stats writes shapes and statistics there. "
            "Add it to the config, for instance `stats_dir: ${exp_dir}/stats`"
        )
    if not callable(getattr(model, "collect_feats", None)):
        raise MisconfigurationException(
            f"{type(model).__name__} has no method collect_feats(**batch), which collect_stats calls for the "
            "features; it returns a dict such as {'feats': ..., 'feats_lengths': ...}"
        )
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise MisconfigurationException(f"collect_stats_batch_size must be an integer >= 1, got {batch_size!r}")
    return Path(stats_dir)


def _number_of_workers(parallel: Mapping[str, Any] | None) -> int:
    parallel = parallel or {}
    environment, workers = parallel.get("env") or "local", parallel.get("n_workers")
    workers = 1 if workers is None else workers
    if environment not in ("local", "local_gpu"):
        raise MisconfigurationException(
            f"parallel.env: {environment!r} is not supported; use 'local' with n_workers processes on one "
            "machine, or torchrun (under the cluster's own scheduler) on several"
        )
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise MisconfigurationException(f"parallel.n_workers must be an integer >= 1, got {workers!r}")
    return workers


def _with_ids(dataset: Any) -> Any:
    """The data set with utterance ids beside its samples; the caller's own stays as it is."""
    if hasattr(dataset, "use_espnet_collator"):
        dataset = copy.copy(dataset)
        dataset.use_espnet_collator = True
    return dataset


def _run_share(collector: Collector, mode: str, n_workers: int) -> Iterable[BatchStats]:
    """All results in data order, on rank zero; other ranks compute theirs and hand them over."""
    batches = math.ceil(len(collector.dataset) / collector.batch_size)
    rank, ranks = global_rank(), world_size()
    share = range(batches * rank // ranks, batches * (rank + 1) // ranks)
    samples = min(share.stop * collector.batch_size, len(collector.dataset)) - share.start * collector.batch_size
    description = f"collect_stats {mode}" + (f" (rank 0 of {ranks})" if ranks > 1 else "")
    stream, silent = writable(sys.stderr), not is_global_zero()
    with bar_for(stream)(total=samples, desc=description, unit="utt", file=stream, disable=silent) as progress:
        if ranks == 1:
            return list(_run(collector, share, min(n_workers, batches), progress))
        results, failure = [], None
        try:
            results = list(_run(collector, share, 1, progress))
        except Exception as error:  # raised in _gather, after the other ranks, which wait, have been told
            failure = error
    return _gather(results, failure)


def _run(collector: Collector, batches: range, n_workers: int, progress: tqdm) -> Iterator[BatchStats]:
    """The results of these batches, in their order."""
    if n_workers == 1:
        with collector.at_work() as collect:
            yield from _counted(map(collect, batches), progress)
        return
    try:
        payload = pickle.dumps(collector)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise MisconfigurationException(
            f"parallel.n_workers={n_workers} sends the model, the data set and the collate function to other "
            f"processes, but they cannot be pickled: {error}. Define their classes and functions at the top "
            "of a module, or set n_workers: 1"
        ) from error
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, spawn, initializer=start_worker, initargs=(payload,)) as pool:
        yield from _counted(pool.map(collect_batch, batches), progress)


def _counted(results: Iterator[BatchStats], progress: tqdm) -> Iterator[BatchStats]:
    line_at = time.monotonic() + LINE_EVERY
    for result in results:
        progress.update(len(result.uids))
        if isinstance(progress, LogLines) and time.monotonic() >= line_at:
            progress.print_line()
            line_at = time.monotonic() + LINE_EVERY
        yield result
    if isinstance(progress, LogLines):
        progress.print_line()


def _gather(results: list[BatchStats], failure: Exception | None) -> list[BatchStats]:
    """All ranks' results, in the ranks' order, on rank zero; an error on one rank is raised on all."""
    failures: list[str | None] = [None] * world_size()
    # All ranks reach this, also one that failed: nobody waits for a rank that is gone.
    dist.all_gather_object(failures, None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, message in enumerate(failures):
        if message is not None:
            raise RuntimeError(f"collect_stats failed on rank {rank}: {message}")
    gathered: list[list[BatchStats]] | None = [[]] * world_size() if is_global_zero() else None
    dist.gather_object(results, gathered)  # all ranks reach this: none of them failed
    return [result for part in gathered or () for result in part]


def _write(folder: Path, total: BatchStats) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for key, shapes in total.shapes.items():
        lines = (f"{uid} {','.join(map(str, shape))}" for uid, shape in zip(total.uids, shapes, strict=True))
        _write_file(folder / f"{key}_shape", partial(_write_lines, lines))
    for key, (count, first, second) in total.sums.items():
        arrays: dict[str, Any] = {"count": np.int64(count), "sum": first, "sum_square": second}
        _write_file(folder / f"{key}_stats.npz", partial(np.savez, **arrays))
    for name, keys in (("batch_keys", total.batch_keys), ("stats_keys", total.sums)):
        _write_file(folder / name, partial(_write_lines, keys))


def _write_lines(lines: Iterable[str], file: BinaryIO) -> None:
    file.write("".join(f"{line}\n" for line in lines).encode())


def _write_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write beside the final name, then rename: a run that is killed leaves no half a file."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file)
