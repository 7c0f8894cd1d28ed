"""`Profiler`: where a run's seconds go, by hook and callback, with `torch.profiler`'s ranges."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.profiler import profile, record_function, schedule

from espnet3_lite.callbacks.base import Callback, looks_at_no_outputs
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

logger = logging.getLogger(__name__)

#: Of a fit, `Profiler("pytorch")` records the batches after the first two: all operators of so many steps.
STEPS_RECORDED = 5


class Profiler(Callback):
    """Labels what a run does, adds up its seconds, and can record a trace.

    The labels are ranges of `torch.profiler.record_function`: ``data wait``, ``to device``, ``forward``, ``vote``,
    ``backward``, ``step``, ``validation``, and each hook of each callback and of the module, such as
    ``on_train_batch_end MetricsLogger``. At the end of a call a table says how often each came and how long it took by
    the host's clock (a GPU may still work when a range ends: the next thing that waits for it pays). A range within
    another one counts in both; the last line is what no range covers, such as the loop itself and the call's
    preparation. The functions are wrapped when a call begins, and put back when it ends, so a trainer
    without a profiler runs none of this.

    Args:
        kind: ``simple``: the table. ``pytorch``: also the operators of `STEPS_RECORDED` training steps, by
            `torch.profiler.profile`, as ``profile/trace-rank<rank>.json`` for https://ui.perfetto.dev. Or a
            `torch.profiler.profile` of your own, which runs from the call's start to its end and steps once a batch.
        folder: Where ``profile/`` is made. Default: the working folder.

    Raises:
        MisconfigurationException: an unknown `kind`.

    Example:
        >>> Profiler("simple").rows()
        []
    """

    def __init__(self, kind: str | profile = "simple", folder: str | Path = "."):
        if kind not in ("simple", "pytorch") and not isinstance(kind, profile):
            raise MisconfigurationException(f"Profiler({kind!r}): give 'simple', 'pytorch' or a torch.profiler.profile")
        self.kind, self.folder = kind, Path(folder)
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        #: Seconds within any range, each counted once, and how many ranges are open.
        self.covered, self._depth = 0.0, 0
        self._profile: profile | None = None
        self._undo: list[Callable[[], None]] = []
        self._began = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """A copy measures nothing yet."""
        return {**super().__getstate__(), "_profile": None, "_undo": []}

    # ---- ranges ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def range(self, label: str) -> Iterator[None]:
        """Within the block, time goes to this label."""
        with record_function(label):
            began = time.perf_counter()
            self._depth += 1
            try:
                yield
            finally:
                seconds = time.perf_counter() - began
                self._depth -= 1
                self.covered += seconds if self._depth == 0 else 0.0
                self.seconds[label] += seconds
                self.calls[label] += 1

    def labelled(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """The function, whose calls are a range named `label` in the profile."""

        @functools.wraps(function)
        def within(*args: Any, **kwargs: Any) -> Any:
            with self.range(label):
                return function(*args, **kwargs)

        return within

    def _wrap(self, owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
        """Put a wrapped function in the place of an object's own, until the call ends."""
        own = getattr(owner, name) if name in getattr(owner, "__slots__", ()) else vars(owner).get(name)
        setattr(owner, name, wrapper(getattr(owner, name)))
        self._undo.append(lambda: setattr(owner, name, own) if own is not None else delattr(owner, name))

    def _label(self, owner: Any, name: str, label: str) -> None:
        self._wrap(owner, name, lambda function: self.labelled(function, label))

    def _waiting(self, begin: Callable[[], Iterable[Any]]) -> Callable[[], Iterator[Any]]:
        """`begin_epoch` with its batches each within a range."""

        def begin_epoch() -> Iterator[Any]:
            batches = begin()  # now, not with the first batch

            def each() -> Iterator[Any]:
                iterator = iter(batches)
                while True:
                    with self.range("data wait"):
                        batch = next(iterator, None)
                    if batch is None:  # a pair of a batch and whether it is the last, as long as there are any
                        return
                    yield batch

            return each()

        return begin_epoch

    # ---- a call ----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Label hooks, evaluation and votes. The profile begins."""
        self._restore()
        self.seconds.clear()
        self.calls.clear()
        self.covered = 0.0
        self._wrap(trainer.callback_handler, "rebuild", self._relabel(trainer))
        trainer.callback_handler.rebuild()
        for loop in trainer.evaluation_loops.values():
            self._label(loop, "run", loop.word)
            if trainer.is_overridden(step := f"{loop.word}_step", pl_module):
                self._label(pl_module, step, step)
        self._label(trainer.strategy, "vote", "vote")
        self._profile = self._make_profile(trainer)
        if self._profile is not None:
            self._profile.start()
        self._began = time.perf_counter()

    def _relabel(self, trainer: Trainer) -> Callable[[Callable[[], None]], Callable[[], None]]:
        """A `rebuild` that labels each listener, and the module's hooks beside them."""

        def wrapper(rebuild: Callable[[], None]) -> Callable[[], None]:
            def rebuild_labelled() -> None:
                rebuild()
                for event, listeners in trainer.callback_handler.listeners.items():
                    hook = event.partition(":")[0]
                    listeners[:] = [
                        one if _owner_of(one) is self else self.labelled(one, f"{hook} {_name_of(one)}")
                        for one in listeners
                    ]
                trainer.hook_calls.find(trainer.lightning_module)
                of_module = trainer.hook_calls.of_module
                for hook, function in of_module.items():
                    of_module[hook] = self.labelled(function, f"{hook} {type(trainer.lightning_module).__name__}")
                trainer.hook_calls.fill()

            return rebuild_labelled

        return wrapper

    def _make_profile(self, trainer: Trainer) -> profile | None:
        if isinstance(self.kind, profile):
            return self.kind
        if self.kind == "simple":
            return None
        path = self.folder / "profile" / f"trace-rank{trainer.global_rank}.json"

        def write(recorded: profile) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(path))
            logger.info("%s: %d training steps as a trace; open it at https://ui.perfetto.dev", path, STEPS_RECORDED)

        return profile(schedule=schedule(wait=1, warmup=1, active=STEPS_RECORDED, repeat=1), on_trace_ready=write)

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The optimizers and the training step are there: label the acts of a batch."""
        plan = trainer.plan
        self._label(trainer.train_data, "start_epoch", "data wait")  # it may fetch the first batch
        self._wrap(trainer.fit_loop, "begin_epoch", self._waiting)
        self._label(trainer.fit_loop, "backward", "backward")
        self._label(plan, "training_step", "forward")
        if plan.transfer is not None:
            self._label(plan, "transfer", "to device")
        for slot in plan.slots.values():
            self._label(slot.optimizer, "step", "step" if slot.name is None else f"step {slot.name}")

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The profile's schedule counts batches."""
        if self._profile is not None:
            self._profile.step()

    def teardown(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Show the table, and put everything back."""
        self._end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LiteModule, exception: BaseException) -> None:
        """What was measured so far is shown."""
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if not self._undo:  # it has ended already
            return
        whole = time.perf_counter() - self._began
        self._restore()
        trainer.callback_handler.rebuild()
        trainer.hook_calls.find(trainer.lightning_module)
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
        if trainer.is_global_zero:
            logger.info("%s", "\n".join(self.table(whole)))

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    # ---- what was measured -----------------------------------------------------------------------------------------

    def rows(self) -> list[tuple[str, int, float]]:
        """Each label with how often it came and its seconds, the longest first."""
        longest_first = sorted(self.seconds.items(), key=lambda item: -item[1])
        return [(name, self.calls[name], seconds) for name, seconds in longest_first]

    def table(self, whole: float) -> list[str]:
        """The table as lines.

        Args:
            whole: Seconds of the whole call.
        """
        lines = [f"where {whole:.4g} seconds went (a part within another one counts for both):"]
        lines.append(f"{'seconds':>9} {'share':>6} {'calls':>7} {'ms/call':>9}  what")
        for name, calls, seconds in self.rows():
            lines.append(f"{seconds:9.3f} {seconds / whole:6.1%} {calls:7d} {1000 * seconds / calls:9.3f}  {name}")
        rest = whole - self.covered
        lines.append(f"{rest:9.3f} {rest / whole:6.1%} {'':17}  the rest: in none of these")
        return lines


def _owner_of(listener: Callable[..., Any]) -> Any:
    """The object whose method this is; None for another function."""
    return getattr(listener, "__self__", None)


def _name_of(listener: Callable[..., Any]) -> str:
    owner = _owner_of(listener)
    return type(owner).__name__ if owner is not None else getattr(listener, "__qualname__", repr(listener))
