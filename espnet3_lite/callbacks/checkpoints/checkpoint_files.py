"""Names and places of checkpoint files: templates such as ``{epoch}-{valid/loss:.2f}``, the folder, what is removed.

When a file is saved and which ones stay is decided in `model_checkpoint.py`.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.base import Checkpoint
from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.checkpoint.atomic_files import link_or_copy, remove_checkpoint
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import CheckpointError, MisconfigurationException, nearest

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

#: Methods of Lightning's `ModelCheckpoint` that nothing calls here, with what to override instead.
_NOT_CALLED = {
    "_format_checkpoint_name": "format_checkpoint_name",
    "_get_metric_interpolated_filepath_name": "format_checkpoint_name",
    "_find_last_checkpoints": "resume_candidates",
}

_FIELD = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


def fill_in(template: str, metrics: Mapping[str, Any], insert_names: bool, equals: str = "=") -> str:
    """A file's name, without folder and extension.

    Args:
        template: Text with fields ``{name}`` or ``{name:format}``; a name may hold slashes and dots.
        metrics: A number, or a tensor with one element, a name; 0 for a name that is not there.
        insert_names: Write ``name=value`` for each field instead of the value alone.
        equals: What stands between the two.

    Raises:
        MisconfigurationException: a value that its field's format cannot show.

    >>> fill_in("{epoch:02d}-{valid/loss:.2f}", {"epoch": 3, "valid/loss": 0.123}, insert_names=True)
    'epoch=03-valid/loss=0.12'
    >>> fill_in("step{step}", {"step": 7}, insert_names=False)
    'step7'
    """

    def value_of(field: re.Match) -> str:
        name, form = field[1], field[2] or ""
        try:
            text = format(metrics.get(name, 0), form)
        except (ValueError, TypeError) as error:
            raise MisconfigurationException(
                f"ModelCheckpoint(filename={template!r}): the field {field[0]!r} cannot show {metrics.get(name, 0)!r}: "
                f"{error}; use a format such as {{{name}:.2f}}"
            ) from error
        return f"{name}{equals}{text}" if insert_names else text

    return _FIELD.sub(value_of, template)


def pattern_of(template: str, insert_names: bool, equals: str, version: str, extension: str) -> re.Pattern[str]:
    """What recognises the names that `fill_in` made from a template, with or without a version.

    >>> bool(pattern_of("step{step}", False, "=", "-v", ".ckpt").fullmatch("step12-v1.ckpt"))
    True
    >>> bool(pattern_of("step{step}", False, "=", "-v", ".ckpt").fullmatch("epoch1_step12.ckpt"))
    False
    """
    literals = _FIELD.split(template)  # literal, name, format, literal, ...
    pattern = re.escape(literals[0])
    for name, literal in zip(literals[1::3], literals[3::3], strict=True):
        pattern += (re.escape(f"{name}{equals}") if insert_names else "") + "[^/]+?" + re.escape(literal)
    return re.compile(rf"{pattern}(?:{re.escape(version)}\d+)?{re.escape(extension)}")


class CheckpointFiles(Checkpoint):
    """A callback's folder and the names in it: the part of `ModelCheckpoint` that decides nothing.

    Args:
        dirpath: As in `ModelCheckpoint`; so are the others.
        filename: Template of a name.
        auto_insert_metric_name: Write ``name=value`` for each field.
        enable_version_counter: Make versions instead of writing over files.
        save_weights_only: The files are nothing to resume from.
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1
    #: The time, in ns, of the newest file that this process has written or might go on from.
    _newest_time = 0

    def __init__(
        self,
        dirpath: str | os.PathLike | None,
        filename: str | None,
        auto_insert_metric_name: bool,
        enable_version_counter: bool,
        save_weights_only: bool,
    ):
        self.dirpath = None if dirpath is None else os.path.realpath(os.path.expanduser(_local(dirpath)))
        self.filename = filename
        self.auto_insert_metric_name = auto_insert_metric_name
        self.enable_version_counter = enable_version_counter
        self.save_weights_only = save_weights_only
        #: Written by this run after the state from which it goes on: it will write them again.
        self._given_up: set[str] = set()
        self._told: set[str] = set()
        self._keeps_all = False  # no file is to replace another one

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse an override that would never be called."""
        super().__init_subclass__(**kwargs)
        for name in _NOT_CALLED.keys() & vars(cls).keys():
            raise MisconfigurationException(
                f"{cls.__name__}.{name}: Lightning's ModelCheckpoint calls it, espnet3_lite's does not; override "
                f"{_NOT_CALLED[name]} instead"
            )

    @property
    def _fs(self) -> Any:
        """fsspec's file system of the folder, which classes written for Lightning's ask; torch brings fsspec along."""
        return importlib.import_module("fsspec").core.url_to_fs(os.fspath(self.dirpath or "."))[0]

    @property
    def _own_folder(self) -> Path:
        """`dirpath`, which a fit chooses where it was not given."""
        assert self.dirpath is not None
        return Path(self.dirpath)

    def format_checkpoint_name(
        self,
        metrics: dict[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """The path of a file.

        Args:
            metrics: Numbers, or tensors with one element, by name; 0 for a field that is not there.
            filename: A template; `filename` of this callback by default.
            ver: A version, appended as ``-v<ver>``.
            prefix: Put before the name, with a ``-``.
        """
        template = filename or self.filename or self._default_filename
        name = fill_in(template, metrics, self.auto_insert_metric_name, self.CHECKPOINT_EQUALS_CHAR)
        parts = [prefix, name, None if ver is None else f"v{ver}"]
        name = self.CHECKPOINT_JOIN_CHAR.join(part for part in parts if part is not None) + self.FILE_EXTENSION
        return os.path.join(self.dirpath, name) if self.dirpath else name

    @property
    def _default_filename(self) -> str:
        return f"{{epoch}}{self.CHECKPOINT_JOIN_CHAR}{{step}}"

    def _free_path(
        self, trainer: Trainer, candidates: dict[str, Any], filename: str | None, reuse: Collection[str]
    ) -> str:
        """The path to save under: the first version that is not taken, or one of `reuse`, which may be written over."""
        path, coming = self.format_checkpoint_name(candidates, filename), trainer.strategy.saver.coming
        version = self.STARTING_VERSION
        free = {*reuse, *self._given_up}
        while self.enable_version_counter and (path in coming or self.file_exists(path, trainer)) and path not in free:
            path = self.format_checkpoint_name(candidates, filename, ver=version)
            version += 1
        self._given_up.discard(path)
        if filename != self.CHECKPOINT_NAME_LAST:
            self._doubt_name(trainer, candidates, overwrites=self._keeps_all and path in reuse)
        return trainer.strategy.broadcast(path)  # collective: rank zero knows what is on its disk

    def _doubt_name(self, trainer: Trainer, candidates: dict[str, Any], overwrites: bool) -> None:
        """Warn, once each, of a template that loses files, or whose field nothing is logged under."""
        template, loop = self.filename or self._default_filename, trainer.fit_loop
        doubts = []
        if overwrites:
            doubts.append("save_top_k=-1 keeps all, but each file has the name of the one before, and replaces it: put "
                          "{epoch} or {step} into it")  # fmt: skip
        if trainer.validation_ran or loop.epoch or loop.epoch_ended:  # else it may be logged yet
            missing = [name for name, _ in _FIELD.findall(template) if name not in candidates]
            doubts += [f"nothing is logged as {name!r}, 0 stands for it{nearest(name, candidates)}" for name in missing]
        for doubt in doubts:
            if doubt not in self._told:
                self._told.add(doubt)
                rank_zero_warn(f"ModelCheckpoint(filename={template!r}): {doubt}")

    def _give_up(self, trainer: Trainer, known: Collection[str]) -> None:
        """A run that was cut goes on: files that are newer than its state, and not `known` to it, lose their names."""
        if trainer.auto_resume and trainer.ckpt_path is not None and trainer.is_global_zero:
            state = Path(trainer.ckpt_path)
            since = 0 if _was_moved(state) else state.stat().st_mtime_ns  # the times of a copied folder say nothing
            for template in (self.CHECKPOINT_NAME_LAST, self.filename or self._default_filename):
                found = [path for path in self._existing(self._own_folder, template) if str(path) not in known]
                newer = [path for path in found if path.lstat().st_mtime_ns >= since]
                step = _step_of(state) if newer else 0
                # What has fewer steps than the state is another run's, whatever its time.
                self._given_up |= {str(path) for path in newer if not 0 <= _step_of(path) < step}

    def _note_times(self, trainer: Trainer) -> None:
        """Before training: whatever is saved from now on is newer than what is there."""
        times = [path.stat().st_mtime_ns for path in self.resume_candidates(trainer)]
        CheckpointFiles._newest_time = max([CheckpointFiles._newest_time, *times])

    def _keep_order(self, path: str) -> None:
        """A file was written: it is the newest by its time too, also where the clock was set back meanwhile."""
        before, time = CheckpointFiles._newest_time, os.stat(path).st_mtime_ns
        if time <= before:
            time = before + 1000  # a microsecond: some file systems count no smaller ones
            os.utime(path, ns=(time, time))
        CheckpointFiles._newest_time = time

    def _folder(self, trainer: Trainer) -> str:
        if self.dirpath is not None:
            return self.dirpath
        if not trainer.loggers:
            return os.path.join(trainer.default_root_dir, "checkpoints")
        logger = trainer.loggers[0]
        # A logger of one's own may have no name, no version and no folder. Looking for a version may change the name.
        version, name = getattr(logger, "version", None), getattr(logger, "name", None)
        folder = getattr(logger, "save_dir", None) or trainer.default_root_dir
        inner = [] if version is None else [version if isinstance(version, str) else f"version_{version}"]
        return os.path.join(folder, *([] if name is None else [str(name)]), *inner, "checkpoints")

    def _look_at_folder(self) -> None:
        """Before a run: warn of other runs' checkpoints; an hour later is too late to say that nothing can be written.

        Raises:
            CheckpointError: the folder cannot be made, or nothing written into it.
        """
        # Lightning warns of any file; a run's own configuration, log, statistics and earlier fits are no reason to.
        if any(self._own_folder.glob(f"*{self.FILE_EXTENSION}")):
            rank_zero_warn(f"Checkpoint directory {self.dirpath} exists and is not empty.")
        there = next(path for path in (self._own_folder, *self._own_folder.parents) if path.exists())
        reason = "is not a folder" if not there.is_dir() else "is read-only" if not os.access(there, os.W_OK) else ""
        if reason:
            raise CheckpointError(
                f"{self.dirpath}: no checkpoint can be written here: {there} {reason}. Give another folder by "
                f"Trainer(default_root_dir=...) or ModelCheckpoint(dirpath=...), or set enable_checkpointing=False"
            )

    def _existing(self, folder: str | Path, template: str) -> list[Path]:
        """The files in `folder` that bear a name made from `template`, the oldest first."""
        version = f"{self.CHECKPOINT_JOIN_CHAR}v"
        pattern = pattern_of(
            template, self.auto_insert_metric_name, self.CHECKPOINT_EQUALS_CHAR, version, self.FILE_EXTENSION
        )
        fixed = _FIELD.sub(lambda field: field[1] if self.auto_insert_metric_name else "", template)
        paths = Path(folder).glob(
            "*/" * fixed.count("/") + f"*{self.FILE_EXTENSION}"
        )  # a slash in a name makes a folder
        found = [path for path in paths if pattern.fullmatch(path.relative_to(folder).as_posix()) and path.exists()]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def resume_candidates(self, trainer: Trainer) -> list[Path]:
        """The files in this callback's folder that a fit may go on from; two names of one file count once.

        Which of them is the newest one that is intact is found at the start of the call.
        """
        if self.save_weights_only:
            return []
        folder = self._folder(trainer)
        files: dict[tuple[int, int], Path] = {}
        for template in (self.CHECKPOINT_NAME_LAST, self.filename or self._default_filename):
            for path in self._existing(folder, template):
                files.setdefault((path.stat().st_dev, path.stat().st_ino), path)
        return list(files.values())

    def file_exists(self, filepath: str, trainer: Trainer) -> bool:
        """Is the name taken? Rank zero's answer counts."""
        return os.path.exists(filepath)

    @staticmethod
    def _is_one_file(one: str | os.PathLike | None, other: str) -> bool:
        """Two names of one file that is there, by links too."""
        return one is not None and os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if trainer.is_global_zero:
            trainer.strategy.saver.behind(lambda: link_or_copy(filepath, linkpath))

    def _remove(self, trainer: Trainer, paths: list[str], saved: str) -> None:
        """Remove files whose place another one takes, once that is on disk. Rank zero does it."""
        for path in paths if trainer.is_global_zero else ():
            if self._should_remove_checkpoint(trainer, path, saved):
                trainer.strategy.saver.behind(partial(self._remove_checkpoint, trainer, path))

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Only in this callback's folder; never what was just saved, nor what the user resumed from.

        (What ``auto_resume`` chose is a file like any other: it may go when its turn comes.)
        """
        named_by_user = None if trainer.auto_resume else trainer.ckpt_path
        keep = {Path(path).absolute() for path in (current, named_by_user) if path is not None}
        path = Path(previous).absolute()
        return path not in keep and self._own_folder.absolute() in path.parents

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        try:
            remove_checkpoint(filepath)
        except OSError as error:  # what is newer is safe: no reason to end a run
            rank_zero_warn(f"ModelCheckpoint: {filepath} could not be removed: {error}")


def newest_first(paths: Collection[Path]) -> list[Path]:
    """Checkpoints to go on from, by the time at which they were written.

    Of several that are called the last one (Lightning writes ``last-v1.ckpt`` beside a ``last.ckpt`` of another run)
    that with the most steps goes first, whatever the time: a copied folder's times say little. It is told. In such a
    folder one that has fewer steps than the last one does not go before it either.
    """
    ordered = sorted(set(paths), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    last = [index for index, path in enumerate(ordered) if re.fullmatch(r"last(-v\d+)?\.ckpt", path.name)]
    if len(last) > 1:
        steps = {ordered[index]: _step_of(ordered[index]) for index in last}
        most = sorted(steps, key=steps.__getitem__, reverse=True)  # equal ones stay in the order of time
        for index, path in zip(last, most, strict=True):
            ordered[index] = path
        found = ", ".join(f"{path} (step {step if step >= 0 else 'unreadable'})" for path, step in steps.items())
        rank_zero_info("Several last checkpoints: %s. The first to be tried is %s", found, most[0])
    newer = ordered[: last[0]] if last else []
    if newer and _was_moved(ordered[last[0]]):
        behind = [path for path in newer if 0 <= _step_of(path) < _step_of(ordered[last[0]])]
        first = [path for path in ordered[: last[0] + 1] if path not in behind]
        ordered = [*first, *behind, *ordered[last[0] + 1 :]]
    return ordered


def newest_checkpoint(trainer: Trainer) -> str | None:
    """The newest intact checkpoint that the checkpoint callbacks know of; None on all ranks but rank zero."""
    if not trainer.is_global_zero:
        return None
    candidates: list[Path] = []
    for callback in trainer.checkpoint_callbacks:
        finder = getattr(callback, "resume_candidates", None)
        candidates += finder(trainer) if finder is not None else []
    newest = checkpoint_io.newest_intact(newest_first(candidates))
    return None if newest is None else os.fspath(newest)


def _step_of(path: Path) -> int:
    """The optimizer steps that a checkpoint had seen; -1 where that cannot be read."""
    try:
        step = checkpoint_io.load_checkpoint(path, mmap=True).get("global_step")
    except CheckpointError:
        return -1
    return step if isinstance(step, int) else -1


def _was_moved(path: Path) -> bool:
    """Whether a checkpoint, by what its callbacks noted, was written in another folder."""
    try:
        states = checkpoint_io.load_checkpoint(path, mmap=True).get("callbacks", {}).values()
    except CheckpointError:
        return False
    folders = {state.get("dirpath") for state in states if isinstance(state, Mapping)} - {None}
    return bool(folders) and os.path.realpath(path.parent) not in folders


def _local(dirpath: str | os.PathLike) -> str:
    """The folder as text.

    Raises:
        MisconfigurationException: it is an address instead.
    """
    text = os.fspath(dirpath)
    if re.match(r"[a-z0-9]+://", text):
        raise MisconfigurationException(
            f"ModelCheckpoint(dirpath={text!r}): checkpoints are written to local folders only; give a path"
        )
    return text
