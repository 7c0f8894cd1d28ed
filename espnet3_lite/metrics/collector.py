"""Logged values: what `self.log` was given, kept on the device, and what becomes of it at a step and at an epoch's end.

Nothing here reads a value from the device; whoever looks at ``callback_metrics`` does. The loop feeds loggers and bars.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from espnet3_lite.exceptions import refuse
from espnet3_lite.loaders.transfer import batch_size_of
from espnet3_lite.metrics import logged_value
from espnet3_lite.metrics.logged_value import Key, LoggedValue, Number, as_number
from espnet3_lite.metrics.metric_objects import is_metric_object, metric_objects, restore, state_of
from espnet3_lite.trainer.hook_table import LOG_DEFAULTS, LogDefaults

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

#: A value that the batch in work has logged: its entry, with the last value as it is now; and as they were the last
#: value, total, weight and times.
Touched: TypeAlias = tuple[LoggedValue, Number | None, tuple[Number | None, Number | None, Any, int]]

#: Where nothing can be logged.
_NOWHERE = LogDefaults(on_step=False, on_epoch=False, step_possible=False)


class Metrics:
    """``trainer.metrics``: takes `log` calls and gives ``callback_metrics``, ``logged_metrics`` and the bar's values.

    Args:
        trainer: For the strategy (reduction over ranks) and the batch that is in work.

    A training value that is logged on steps is its last one; at an epoch's end each value that is logged on epochs is
    reduced over all ranks (by weight) and stands under its name until it is logged anew.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        #: The hook that runs now: decides the defaults of `log`, and whether it is allowed. Whoever enters users' code
        #: sets it: `HookCalls` for hooks; for steps the loops, by a plain store, since a call would cost in each batch;
        #: and what has called a hook within a step (by hand, in a closure) sets the step's again.
        self.hook = "no hook"
        self.clear()

    def clear(self) -> None:
        """A new call of the trainer begins."""
        self.training: dict[Key, LoggedValue] = {}
        self.evaluation: dict[Key, LoggedValue] = {}
        self.active = self.training
        #: Which of several loaders is in work, and what is appended to names meanwhile.
        self.dataloader_idx: int | None = None
        self.loader_suffix = ""
        #: What `callback` gave when somebody last looked: values that were logged since are not in it.
        self.callback_as_published: dict[str, torch.Tensor] = {}
        self._progress_bar: dict[str, torch.Tensor] = {}
        self._logged: dict[str, torch.Tensor] = {}
        #: How often each callback metric was set: tells whether it was logged anew.
        self.versions: Counter[str] = Counter()
        #: How often somebody has looked at the callback metrics, and may have set some.
        self.looked_at = 0
        #: Some values have graphs: who notes `touched` does not keep it for long.
        self.holds_graphs = False
        #: The states of metric objects when the evaluation in work began.
        self._objects_before: dict[str, Any] = {}
        self.start_batch(None)

    # ---- taking values ---------------------------------------------------------------------------------------------

    def log(self, name: str, value: Any, given: tuple[Any, ...], batch_size: Number | None = None) -> None:
        """See `LiteModule.log`; `given` are the `LogArguments`, in their order."""
        key = (self.hook, name, self.dataloader_idx)
        entry = self.active.get(key)
        if entry is None or entry.given != given:
            entry = self.active[key] = self._entry(name, entry, given)
        arguments = entry.arguments
        if arguments.rank_zero_only and not self.trainer.is_global_zero:
            return
        if type(value) is not torch.Tensor and is_metric_object(value):  # asked first: nearly always it is one
            entry.take_metric(value)  # for good
            self.touched.append((entry, entry.last, (entry.last, entry.total, entry.weight, entry.times)))
            return
        number, dtype = as_number(name, value, arguments.enable_graph, entry.on_step)
        if batch_size is None:
            batch_size = self.batch_size if entry.on_epoch and entry.reduce == "mean" else 1
        elif batch_size is not getattr(self.trainer.lightning_module, "__dict__", {}).get("batch_weight"):
            logged_value.check_weight(name, batch_size)  # that other one the vote judges
        before = entry.last, entry.total, entry.weight, entry.times
        entry.update(number, batch_size, dtype)
        if arguments.sync_dist and entry.on_step and self.active is self.training and not arguments.rank_zero_only:
            # Collective: all ranks run the same training step. Their evaluation batches may differ in number. The
            # epoch's sum stays this rank's own, which is reduced at the epoch's end.
            entry.last = self.trainer.strategy.reduce(torch.as_tensor(number, dtype=dtype), reduce_op=entry.reduce)
        self.touched.append((entry, entry.last, before))

    def _entry(self, name: str, known: LoggedValue | None, given: tuple[Any, ...]) -> LoggedValue:
        """A new value; or one that is `known` by the same arguments, in other words."""
        if not isinstance(name, str):
            raise TypeError(f"`self.log({name!r}, ...)`: first comes the name, such as 'train/loss', then the value")
        defaults = LOG_DEFAULTS.get(self.hook, _NOWHERE)
        arguments = logged_value.normalized(name, given, defaults.on_step, defaults.on_epoch)
        if known is not None and known.arguments == arguments:
            known.given = given
            return known
        on_step, on_epoch, step_possible = arguments.on_step, arguments.on_epoch, defaults.step_possible
        others = [index for hook, logged, index in self.active if (hook, logged) == (self.hook, name)]
        twice = known is not None and known.times  # else it is of a checkpoint, whose run logged it in another way
        refuse(
            f"`self.log({name!r}, ...)` in `{self.hook}`: ",
            (twice, f"called twice with different arguments, {known and known.arguments} and {arguments}"),
            (self.hook not in LOG_DEFAULTS, "it has no step and no epoch to belong to"),
            ("/dataloader_idx_" in name, "the loader's index is appended by itself; leave it out of the name, or use "
             "`add_dataloader_idx=False` with names of your own"),
            (others and known is None and not arguments.add_dataloader_idx, f"different arguments for the loaders "
             f"{others[:1]} and {self.dataloader_idx}; give each a name of its own, or leave out add_dataloader_idx"),
            (not step_possible and on_step, "on_step=True, which must be one of (False,)"),
            (not on_epoch and not (on_step and step_possible), "on_epoch=False, which is not useful without a step"),
        )  # fmt: skip
        self.holds_graphs = self.holds_graphs or arguments.enable_graph
        entry = LoggedValue(name, self.hook, arguments, self.loader_suffix)
        entry.given = given
        if known is not None and known.reduce == entry.reduce:  # the checkpoint's sum goes on
            entry.total, entry.weight = known.total, known.weight
        return entry

    def start_evaluation(self) -> None:
        """From now on an evaluation's values are logged; the training's last ones can be seen meanwhile."""
        self._publish()
        self._objects_before = self._objects()
        self.active = self.evaluation
        self.evaluation.clear()

    def start_batch(self, batch: Any) -> None:
        """A new batch is in work, or none: an epoch is over. A batch's size is found when a mean needs it."""
        self.batch = batch
        self._batch_size: int | None = None
        #: What was logged in the batch in work, in order.
        self.touched: list[Touched] = []

    def discard_since(self, mark: int = 0) -> None:
        """Take back what was logged for the batch in work, all of it or what came after so many: it was skipped."""
        for entry, _, before in reversed(self.touched[mark:]):
            entry.last, entry.total, entry.weight, entry.times = before
        self.touched = self.touched[:mark]  # another list: who has noted the batch with the old one keeps its values

    def mask_batch(self, finite: bool | torch.Tensor) -> None:
        """Leave the batch in work out of the means unless `finite`; a tensor, ``()`` bool, is not read here.

        Where all batches are left out the mean is NaN, as it should be: a run that diverged must look like one.
        """
        for entry, _, (_, total, weight, _) in self.touched:
            entry.leave_out(torch.as_tensor(finite), total, weight)

    @property
    def batch_size(self) -> int:
        """The first dimension of the first tensor in the batch in work; 1 where there is none."""
        if self._batch_size is None:
            self._batch_size = batch_size_of(self.batch)
        return self._batch_size

    # ---- giving values ---------------------------------------------------------------------------------------------

    def step_values(self) -> dict[str, torch.Tensor]:
        """What the loggers get for this training step or evaluation batch: each name's last value of the epoch."""
        loader = self.dataloader_idx
        return {
            entry.step_name: entry.as_tensor(entry.last)
            for (_, _, index), entry in self.active.items()
            if entry.last is not None and entry.on_step and entry.arguments.logger and index == loader
        }

    def end_epoch(self, over: bool = False) -> dict[str, torch.Tensor]:
        """Reduce the values of the epoch, or of the evaluation, over all ranks, publish them, and begin anew.

        All ranks call this: it is one gather, with more than one rank. While one of several loaders is in work, only
        its values are meant.

        Args:
            over: The hooks of the epoch's end have run, who may look at a metric object: these are reset now. Where
                loaders follow one another, they are after each, which may share one.

        Returns:
            What the loggers get: name to value, ``()``.
        """
        self._publish()
        self.start_batch(None)
        loader = self.dataloader_idx
        chosen = {key: entry for key, entry in self.active.items() if loader is None or key[-1] == loader}
        if self.trainer.strategy.world_size > 1:
            logged_value.reduce_over_ranks(chosen, self.trainer)
            self.active.update(chosen)  # another rank may have logged what this one did not
        logged = {}
        for entry in chosen.values():
            value = entry.epoch_value() if entry.on_epoch else None
            if value is not None:
                self._set(entry, entry.epoch_name, value)
                entry.begin_anew()
                if entry.arguments.logger:
                    logged[entry.epoch_name] = value
        for entry in chosen.values():
            if entry.metric is not None and (over or loader is not None):
                entry.metric.reset()
        return logged

    def forget_evaluation(self) -> None:
        """An evaluation was broken off: its values are nobody's."""
        for entry in self.evaluation.values():
            entry.reset()
        self.evaluation.clear()
        self.active, self.dataloader_idx, self.loader_suffix = self.training, None, ""

    def forget(self) -> None:
        """Begin the epoch's values anew, those of the loader in work where there are several.

        A sanity check is through with one of them, whose means are not published, as in Lightning; or a training epoch
        is over: the next one's steps give the loggers their own values only.
        """
        self._publish()
        self.start_batch(None)
        for (_, _, loader), entry in self.active.items():
            if loader == self.dataloader_idx or self.dataloader_idx is None:
                entry.reset()

    def _set(self, entry: LoggedValue, forked: str, value: torch.Tensor, decides: bool = True, counts: int = 1) -> None:
        """Publish a value under the name of its kind (`name_step` or `name_epoch`), and where it `decides` its own."""
        if entry.arguments.prog_bar:
            self._progress_bar[forked] = value
        if entry.arguments.logger:
            self._logged[forked] = value
        if decides:
            self.callback_as_published[entry.name] = self.callback_as_published[forked] = value
            for name in {entry.name, forked} if counts else ():
                self.versions[name] += counts

    def mean_follows(self, name: str) -> bool:
        """Whether an evaluation is in work, after which the training epoch's mean will be published under `name`."""
        return self.active is not self.training and any(e.on_epoch and e.name == name for e in self.training.values())

    def publish(self, name: str, value: Any) -> None:
        """Set a callback metric that nobody logged: a number or ``()`` tensor that a callback found by itself."""
        self.callback[name] = torch.as_tensor(value).detach().reshape(())
        self.versions[name] += 1

    @property
    def callback(self) -> dict[str, torch.Tensor]:
        """``trainer.callback_metrics``."""
        self._publish()
        self.looked_at += 1
        return self.callback_as_published

    @property
    def progress_bar(self) -> dict[str, float]:
        """``trainer.progress_bar_metrics``: numbers, read from the device here."""
        self._publish()
        return {name: float(value) for name, value in self._progress_bar.items()}

    @property
    def logged(self) -> dict[str, torch.Tensor]:
        """``trainer.logged_metrics``."""
        self._publish()
        return self._logged

    def _publish(self) -> None:
        """Values are published lazily: when somebody looks, not at every step."""
        training = self.active is self.training
        for entry in self.active.values():
            if entry.times == entry.times_published:
                continue
            if entry.on_step and entry.last is not None:
                # The count is that of the values logged: it must not depend on how often somebody looked.
                anew, entry.times_published = entry.times - entry.times_published, entry.times
                # One batch of an evaluation decides nothing.
                self._set(entry, entry.step_name, entry.as_tensor(entry.last), decides=training, counts=max(anew, 0))
            elif self.batch is None and not LOG_DEFAULTS[entry.hook].step_possible:  # counts when its epoch is over
                value = entry.epoch_value()
                assert value is not None  # it was logged
                self._set(entry, entry.epoch_name, value, counts=0)

    # ---- resuming --------------------------------------------------------------------------------------------------

    def state_dict(self, within_evaluation: bool = False) -> dict[str, Any]:
        """The training epoch's sums so far, the states of metric objects, and the published values.

        Args:
            within_evaluation: Who resumes here begins the evaluation in work anew.
        """
        self._publish()
        rows = []
        for key, entry in sorted(self.training.items(), key=lambda item: str(item[0])):
            last, row = entry.last, entry.row(self.trainer.lightning_module)
            if row["metric"] is None or (row["metric"] and entry.weight):
                rows.append({"key": list(key), "last": None if last is None else entry.as_tensor(last), **row})
        objects = self._objects_before if within_evaluation else self._objects()
        return {"epoch": rows, "objects": objects, **self.published()}

    def _objects(self) -> dict[str, Any]:
        """The state of each metric object of the module, by place; `logged`: it is reset when the epoch ends."""
        logged = {id(entry.metric) for entry in self.training.values()}
        states = {
            place: {"state": state_of(place, metric), "logged": id(metric) in logged}
            for place, metric in metric_objects(self.trainer.lightning_module).items()
        }
        return {place: saved for place, saved in states.items() if saved["state"]}

    def load_objects(self, state: dict[str, Any], epoch_ended: bool) -> None:
        """Give the module's metric objects the state that they had; those that were logged, in the same epoch only."""
        found = metric_objects(self.trainer.lightning_module)
        for place, saved in state.get("objects", {}).items():
            if place in found and not (epoch_ended and saved["logged"]):
                restore(found[place], saved["state"], self.trainer.strategy.root_device)

    def published(self) -> dict[str, dict[str, Any]]:
        """What can be seen now, and how often each was set, by which schedulers know new from old; for `put_back`."""
        return {"callback": dict(self.callback_as_published), "versions": dict(self.versions)}

    def put_back(self, published: dict[str, dict[str, Any]]) -> None:
        """What can be seen is what `published`, or `state_dict`, gave."""
        self.callback_as_published, self.versions = dict(published["callback"]), Counter(published["versions"])

    def load_epoch(self, state: dict[str, Any]) -> None:
        """Continue its epoch's sums; a second state, another rank's, is added to the first."""
        for row in state["epoch"]:
            key = tuple(row["key"])
            entry = self.training.get(key) or LoggedValue.of_row(key, row)
            entry.add(row, self.trainer.lightning_module)
            entry.last, entry.times_published, self.training[key] = row["last"], entry.times, entry


def keep_out_of_graphs() -> None:
    """Before ``torch.compile``: `log` is plain Python, which changes with each batch, and is left as it is from now on.

    Compiled backward passes keep their buffers, too: several losses may share a graph.
    """
    import torch._functorch.config as graphs  # as torch's own error message says; it has no public name

    graphs.donated_buffer = False
    if not hasattr(Metrics.log, "_torchdynamo_disable"):
        # torch's decorator, without types, put around a method that exists.
        Metrics.log = torch.compiler.disable(Metrics.log)  # type: ignore[method-assign, no-untyped-call]
