"""`ModelCheckpoint`: when a checkpoint is saved, and when an older one goes.

Which ones are best is kept in `checkpoints/checkpoint_ranking.py`, names and folders beside it. What a checkpoint
holds is `checkpoint/run_state.py`'s, how it comes to disk `checkpoint/files.py`'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch

from espnet3_lite.callbacks.base import looks_at_no_outputs
from espnet3_lite.callbacks.checkpoints.checkpoint_ranking import CheckpointRanking, check_arguments
from espnet3_lite.checkpoint.lightning_format import OUR_STATE
from espnet3_lite.checks.value_kinds import parse_duration
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, nearest

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class ModelCheckpoint(CheckpointRanking):
    """Saves checkpoints: the newest, or the best by a logged metric. Names and rules are Lightning's.

    All ranks decide by the same number and save together; rank zero writes, links and removes. A file is removed only
    when the one that takes its place is safely there. Nothing is saved in a sanity check, with ``fast_dev_run``, or
    twice at one ``global_step``. When a signal ends the run, a callback that keeps whole states saves the present one.
    A subclass may override Lightning's methods ``_save_checkpoint``, ``_remove_checkpoint``, ``_monitor_candidates``,
    ``_save_topk_checkpoint``, ``_save_last_checkpoint`` and the like: they are what is called here too.

    Args:
        dirpath: The folder. Default: ``checkpoints`` in the first logger's folder, else in ``default_root_dir``.
        filename: Template of a name, with fields such as ``{epoch:02d}``, ``{step}`` and logged metrics
            (``{valid/loss:.2f}``). Default: ``{epoch}-{step}``, which gives ``epoch=0-step=100.ckpt``.
        monitor: The metric that decides which ones are best. Default: none; the newest is.
        verbose: Tell at each check what became of it.
        save_last: True: also write ``last.ckpt`` with each checkpoint. ``"link"``: make it the same file as the newest
            (a hard link; a copy where there are none; a symbolic link for a sharded checkpoint, which is a folder).
        save_top_k: How many of the best stay; -1: all, 0: none. Without `monitor`: -1, 0, or 1, the newest.
        save_on_exception: Save when an exception ends the run (with one process: several could wait for each other).
        save_weights_only: Leave out optimizers, schedulers and callbacks: nothing to resume from.
        mode: ``min`` or ``max``: which values of `monitor` are better.
        auto_insert_metric_name: Write ``name=value`` for each field of `filename`. With False, a slash in a metric's
            name makes no folder.
        every_n_train_steps: Save after each n-th optimizer step, within epochs; 0 and None: not. A check whose metric
            the next validation will bring waits for that validation.
        train_time_interval: Save after this much time: a timedelta, ``"DD:HH:MM:SS"`` or a dict of a timedelta's
            arguments.
        every_n_epochs: Save in each n-th epoch; 0: not. Default: 1 if neither of the former two is given. Only one of
            the three can be.
        save_on_train_epoch_end: True: at the epoch's end; False: after each validation. Default: after validation where
            ``val_check_interval`` or ``check_val_every_n_epoch`` is not 1 (and there is one), else at the epoch's end.
        enable_version_counter: Write ``name-v1.ckpt`` where ``name.ckpt`` exists already, instead of over it.
        keep_newest: Ours: without `monitor` and with ``save_top_k=1``, how many of the newest stay (default 1), so
            that there is one to fall back to. A run that resumes in its folder counts the files that are there.

    Raises:
        MisconfigurationException: values that are not allowed or contradict each other.

    Example:
        >>> checkpoint = ModelCheckpoint(monitor="valid/loss", filename="{epoch:02d}-{valid/loss:.2f}", save_top_k=3)
        >>> checkpoint.format_checkpoint_name({"epoch": 3, "valid/loss": 0.1234})
        'epoch=03-valid/loss=0.12.ckpt'
        >>> checkpoint.save_top_k, checkpoint.mode, checkpoint.best_model_path
        (3, 'min', '')
    """

    def __init__(
        self,
        dirpath: str | os.PathLike | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | str | dict | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        keep_newest: int = 1,
    ):
        super().__init__(
            monitor, mode, save_top_k, keep_newest, dirpath, filename, auto_insert_metric_name, enable_version_counter,
            save_weights_only,
        )  # fmt: skip
        self.verbose = verbose
        self.save_last = save_last
        self.save_on_exception = save_on_exception
        self._train_time_interval = parse_duration(train_time_interval)
        if every_n_train_steps is None and every_n_epochs is None and train_time_interval is None:
            every_n_epochs = 1
        self._every_n_train_steps = every_n_train_steps or 0
        self._every_n_epochs = every_n_epochs or 0
        self.save_on_train_epoch_end = save_on_train_epoch_end
        check_arguments(self)

        self._last_global_step_saved = 0  # nothing to save before the first step
        self._batches_at_save = 0
        self._last_checkpoint_saved = ""
        self._last_time_checked: float | None = None
        self._waits_for_validation = False
        self._saves_for_resuming = False
        self._warned = False

    @property
    def every_n_epochs(self) -> int:
        """As the constructor was given it; so are the other two."""
        return self._every_n_epochs

    @property
    def every_n_train_steps(self) -> int:
        """0: not by steps."""
        return self._every_n_train_steps

    @property
    def train_time_interval(self) -> timedelta | None:
        """None: not by time."""
        return self._train_time_interval

    # ---- when -----------------------------------------------------------------------------------------------------

    def _listener(self, event: str) -> Callable | None:
        """Our own method listens to batches only where they can be the moment to save."""
        idle = not self._every_n_train_steps and self._train_time_interval is None
        ours = type(self).on_train_batch_end is ModelCheckpoint.on_train_batch_end
        return None if event == "on_train_batch_end" and idle and ours else super()._listener(event)

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Find the folder; warn if a new run begins in one that holds checkpoints of another."""
        self.dirpath = trainer.strategy.broadcast(self._folder(trainer))  # collective: all ranks
        starts = stage == "fit" and self.save_top_k != 0 and not (trainer.ckpt_path or self._last_checkpoint_saved)
        if starts and trainer.is_global_zero:
            self._look_at_folder()

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A run that died while it saved left a link or a removal undone: the run that goes on does it."""
        self._remove_replaced(trainer)
        if trainer.is_global_zero:
            self._note_times(trainer)
        callbacks = [other for other in trainer.checkpoint_callbacks if isinstance(other, CheckpointRanking)]
        self._give_up(trainer, {path for other in callbacks for path in other.known_files})
        goes_on = trainer.auto_resume and trainer.ckpt_path is not None and self.monitor is None
        # Collective: all ranks load the same state, and rank zero knows what is on its disk.
        if goes_on and trainer.strategy.broadcast(os.path.exists(self.best_model_path)):
            self._last_checkpoint_saved = self.best_model_path
            same_file = self._is_one_file(trainer.ckpt_path, self.best_model_path)
            if self.save_last and trainer.strategy.broadcast(same_file):
                self._write_last(trainer, self._monitor_candidates(trainer), link=True)
            self._keep_newest(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The time interval begins."""
        self._last_time_checked = time.monotonic()

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save by steps or by time."""
        by_steps = self._every_n_train_steps > 0 and trainer.global_step % self._every_n_train_steps == 0
        if not self._time_is_up(trainer) and not by_steps:
            return
        candidates = self._monitor_candidates(trainer)
        if self.monitor is not None and (self.monitor not in candidates or self._validation_follows(trainer)):
            self._waits_for_validation = True
        elif not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Save by epochs, where validation is the moment, or what a batch put off."""
        if self._should_skip_saving_checkpoint(trainer) or self._should_save_on_train_epoch_end(trainer):
            return
        if self._waits_for_validation:
            self._waits_for_validation = False
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        else:
            self._save_by_epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Save by epochs, where the epoch's end is the moment."""
        if not self._should_skip_saving_checkpoint(trainer) and self._should_save_on_train_epoch_end(trainer):
            self._save_by_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After a signal: save what the next run goes on from. Else: see that there is a last checkpoint."""
        if trainer.stopped_by_signal:
            self._save_for_resuming(trainer)
        elif self.save_last and not self._last_checkpoint_saved and not trainer.fast_dev_run:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LiteModule, exception: BaseException) -> None:
        """Save what there is, if `save_on_exception` says so."""
        if not self._should_save_on_exception(trainer):
            return
        if trainer.world_size > 1:  # saving is collective, and the other ranks may not have failed
            rank_zero_warn("ModelCheckpoint(save_on_exception=True) does nothing: of several ranks none can save alone")
            return
        candidates = self._monitor_candidates(trainer)
        path = self.format_checkpoint_name(candidates)
        self._save_checkpoint(trainer, path)
        self._save_last_checkpoint(trainer, candidates)
        rank_zero_info("%s (%s) ended the run; saved checkpoint to %s", type(exception).__name__, exception, path)

    def _should_save_on_exception(self, trainer: Trainer) -> bool:
        return self.save_on_exception and not self._should_skip_saving_checkpoint(trainer)

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        already = self._last_global_step_saved == trainer.global_step
        return bool(trainer.fast_dev_run) or trainer.state.fn != "fit" or trainer.sanity_checking or already

    def _time_is_up(self, trainer: Trainer) -> bool:
        if self._train_time_interval is None:
            return False
        now = time.monotonic()
        due = self._last_time_checked is not None and (
            now - self._last_time_checked >= self._train_time_interval.total_seconds()
        )
        due = trainer.strategy.broadcast(due)  # collective: rank zero's clock decides for all ranks
        if due:
            self._last_time_checked = now
        return due

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        if self.save_on_train_epoch_end is not None:
            return self.save_on_train_epoch_end
        if trainer.check_val_every_n_epoch != 1:
            return False
        return not self._validates(trainer) or trainer.val_check_interval == 1.0

    def _validates(self, trainer: Trainer) -> bool:
        return trainer.plan.validation.enabled and sum(trainer.num_val_batches) > 0

    def _validation_follows(self, trainer: Trainer) -> bool:
        """At an epoch's last batch: will validation bring a fresh value, and does this callback save after it?

        Lightning takes a validation for granted there, and misses a save where `val_check_interval` brings none.
        """
        if not trainer.is_last_batch or self._should_save_on_train_epoch_end(trainer) or not self._validates(trainer):
            return False
        return trainer.plan.validation.is_due(trainer.fit_loop.batches_done - 1, is_last=True)

    # ---- what -----------------------------------------------------------------------------------------------------

    def _save_by_epoch(self, trainer: Trainer) -> None:
        candidates = self._monitor_candidates(trainer)
        if self._every_n_epochs and (trainer.current_epoch + 1) % self._every_n_epochs == 0:
            self._save_topk_checkpoint(trainer, candidates)
        saved_now = self._last_global_step_saved == trainer.global_step
        if saved_now or (self.save_last == "link" and self._last_checkpoint_saved):
            self._save_last_checkpoint(trainer, candidates)

    def _save_for_resuming(self, trainer: Trainer) -> None:
        """The state of this moment, which is within an epoch: kept as the newest, never ranked by a stale metric.

        Callbacks that keep the newest state do it; where there is none, the first that saves whole states at all.
        """
        able = [
            callback
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint)
            and not callback.save_weights_only
            and (callback.save_top_k != 0 or callback.save_last)
        ]
        chosen = [callback for callback in able if callback.monitor is None or callback.save_last] or able[:1]
        if self not in chosen or trainer.fast_dev_run or self._batches_at_save == trainer.fit_loop.batches_seen:
            return
        candidates = self._monitor_candidates(trainer)
        self._saves_for_resuming = True  # that save is none of the run's own: the resumed run must not know of it
        if self.monitor is None and self.save_top_k != 0:
            self._save_none_monitor_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        else:
            self._write_last(trainer, candidates, link=False)
        self._saves_for_resuming = False

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Any]:
        """What a name or a decision may be made of: the callback metrics, `epoch` and `step`. All ranks call it."""
        candidates = dict(trainer.callback_metrics)
        if self.monitor is not None:
            # Collective: all ranks decide by the same number, also one that has logged none itself.
            current = trainer.strategy.agreed_metric(candidates.get(self.monitor))
            if current is not None:
                candidates[self.monitor] = current
        for name, count in (("epoch", trainer.current_epoch), ("step", trainer.global_step)):
            candidates[name] = torch.tensor(int(candidates.get(name, count)))
        return candidates

    def _save_topk_checkpoint(self, trainer: Trainer, candidates: dict[str, Any]) -> None:
        if self.save_top_k == 0:
            return
        if self.monitor is None:
            self._save_none_monitor_checkpoint(trainer, candidates)
        elif self.monitor in candidates:
            self._save_monitor_checkpoint(trainer, candidates)
        else:
            hint = nearest(self.monitor, candidates).replace(";", ", or", 1) or "?"
            message = (
                f"`ModelCheckpoint(monitor={self.monitor!r})` could not find the monitored key in the returned "
                f"metrics: {list(candidates)}. HINT: Did you call `log({self.monitor!r}, value)` in the module{hint}"
            )
            if trainer.validation_ran or trainer.validating:
                raise MisconfigurationException(message)
            if not self._warned:
                self._warned = True
                rank_zero_warn(message)

    def _save_none_monitor_checkpoint(self, trainer: Trainer, candidates: dict[str, Any]) -> None:
        path = self._free_path(trainer, candidates, self.filename, reuse=(self.best_model_path,))
        # Set before saving: they are part of the state that is saved.
        previous, self.best_model_path = self.best_model_path, path
        if self.save_top_k == 1:
            self._older = [older for older in (*self._older, previous) if older not in ("", path)]
            self._replaced = self._older[: self._surplus]
        self._save_checkpoint(trainer, path)
        if self.save_top_k == 1:
            self._keep_newest(trainer)

    def _save_last_checkpoint(self, trainer: Trainer, candidates: dict[str, Any]) -> None:
        if self.save_last:
            self._write_last(trainer, candidates, link=self.save_last == "link")

    def _write_last(self, trainer: Trainer, candidates: dict[str, Any], link: bool) -> None:
        path = self._free_path(trainer, candidates, self.CHECKPOINT_NAME_LAST, reuse=(self.last_model_path,))
        previous, self.last_model_path = self.last_model_path, path
        saved = self._last_checkpoint_saved
        if link and saved and self.save_top_k != 0:
            self._link_checkpoint(trainer, saved, path)
        else:
            self._save_checkpoint(trainer, path)
        self._remove(trainer, [previous] if previous else [], path)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if not self._saves_for_resuming:
            self._last_global_step_saved = trainer.global_step
        self._batches_at_save = trainer.fit_loop.batches_seen
        self._last_checkpoint_saved = filepath
        trainer.save_checkpoint(filepath, self.save_weights_only)  # collective: all ranks
        trainer.strategy.saver.when_saved(lambda: self._saved(trainer, filepath))

    def _saved(self, trainer: Trainer, filepath: str) -> None:
        """The file is on disk: loggers may send it."""
        self._on_disk.add(filepath)
        if trainer.is_global_zero:
            self._keep_order(filepath)
            trainer.tell_loggers("after_save_checkpoint", self)

    # ---- state ----------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Tells callbacks apart that differ in metric, mode or interval; as Lightning writes it."""
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._train_time_interval,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the files of the folder, also where it moved; in another one only `best_model_path` is known."""
        super().load_state_dict(state_dict)
        if self.keep_newest > 1 and os.path.dirname(self.best_model_path) == self.dirpath:
            found = [str(path) for path in self._existing(self.dirpath, self.filename or self._default_filename)]
            position = found.index(self.best_model_path) if self.best_model_path in found else len(found)
            # Newer than what this run goes on from are only files that are damaged, or were given up: the first to go.
            self._older = found[position + 1 :] + found[:position]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """Note what Lightning's state has no place for, so that a resumed run saves when an uninterrupted one would."""
        checkpoint["loops"][OUR_STATE].setdefault("checkpoint_callbacks", {})[self.state_key] = {
            "last_global_step_saved": self._last_global_step_saved,
            "waits_for_validation": self._waits_for_validation,
            "replaced": [os.path.relpath(path, self._own_folder) for path in self._replaced],
            "given_up": [os.path.relpath(path, self._own_folder) for path in sorted(self._given_up)],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """Read it again; Lightning's own files do not have it."""
        noted = checkpoint["loops"].get(OUR_STATE, {}).get("checkpoint_callbacks", {}).get(self.state_key)
        if noted is not None:
            self._last_global_step_saved = noted["last_global_step_saved"]
            self._waits_for_validation = noted["waits_for_validation"]
            self._replaced = [str(self._own_folder / name) for name in noted.get("replaced", ())]
            self._given_up = {str(self._own_folder / name) for name in noted.get("given_up", ())}
