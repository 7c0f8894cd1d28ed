"""A user's loader as one rank uses it: its share of samples with indices, each seeded by its place; else a stream.

What every kind can do comes first, with how ranks with unequal numbers of batches go on. Which sample is whose is
`samplers.py`'s.
"""

from __future__ import annotations

import collections
import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.datapipes.datapipe import IterDataPipe

from espnet3_lite.checks.error_notes import cannot_be_iterated_twice, warn_of_other_stream
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.samplers import EpochSampler, ShareSampler
from espnet3_lite.loaders.worker_seeds import SeededInWorkers, seeded_in_workers, tell_epoch
from espnet3_lite.seed import Generator, collect_random_state, generators_in, restore_random_state

if TYPE_CHECKING:
    from espnet3_lite.distributed.single import Strategy
    from espnet3_lite.loaders.transfer import OnItsWay


#: What `next` gives where an epoch's batches are over.
END = object()


class RankLoader:
    """A user's loader as one rank uses it.

    Each rank has its own batches of it, and maybe not as many as the others, where it is an iterable data set, a loader
    that is not a `DataLoader`, or one that the user has dealt out: see `wait_for`.

    Args:
        given: The user's.

    Attributes:
        strategy: The strategy by which the ranks wait for one another; None where all ranks' epochs end with the same
            step.
        replaying: While it is iterated over: the rank has nothing of its own in this step, and takes part in it with
            zero weight.
        ended: While it is iterated over: the batch that it gave last is the rank's last one of the epoch.
        gave_batches: The rank has had batches of its own in some epoch; who iterates over it says so.
        step_size: Items (samples, or whole batches) of a step over all ranks.
        position: How many of the epoch's items are left out.
        limit: How many batches of the epoch are given; none after them is read ahead.
        copy: Begins to copy a batch to the device, one ahead of the step; None: batches are given as they were read.
        random_state: What this process's generators were like before the batch that was read ahead; None where no
            batch is.
        resumed: What `TrainData.state_dict` gave, until a run that resumes reads the first batch that is not left out:
            with the random state before it (`ahead`), and its `mark`.
        following: The batch that was read ahead, as it was read.
    """

    def __init__(self, given: Any):
        self.given, self._counted, self.settings, self.step_size = given, given, settings_of(given), 1
        self._agreed_length: float | None = None
        self.strategy: Strategy | None = None
        self._until_the_vote = False
        self.replaying = self.ended = self.gave_batches = False
        self.position, self.limit = 0, math.inf
        self.copy: Callable[[Any], OnItsWay] | None = None
        self.random_state: dict[str, Any] | None = None
        self.resumed: dict[str, Any] = {}
        self.following: Any = END
        self._state: Any = None
        #: Before a batch is read ahead there is something to note.
        self._notes = False
        #: What is told the epoch beside the user's own parts.
        self._told: list[SeededInWorkers | EpochSampler] = []

    def set_epoch(
        self, epoch: int, position: int = 0, limit: float = math.inf, copy: Callable[[Any], OnItsWay] | None = None
    ) -> None:
        """Say what the next iteration is for.

        Args:
            epoch: Counted from 0.
            position: See the class, as for the others. What has indices is not loaded to be left out.
            limit: How many batches.
            copy: It counts where workers make the batches.
        """
        tell_epoch(self.given, epoch)
        for part in self._told:
            part.set_epoch(epoch)
        self.position, self.limit = position, limit
        self.copy = copy if getattr(self.given, "num_workers", 0) else None

    def state_dict(self, over: bool = False) -> Any:
        """The user's loader's own position behind the batch that was given last, or behind all that were read where the
        epoch is `over`; None where it has none."""
        if self._state is not None and not over:
            return self._state
        return self.given.state_dict() if hasattr(self.given, "state_dict") else None

    def wait_for(self, strategy: Strategy, training: bool) -> None:
        """Let the ranks run their epochs together, though each has its own number of batches. Collective.

        In training, a rank that has run out gives its last batch again and again, `replaying`, until the vote says that
        all are out; a rank that never had one gets another rank's. In evaluation its epoch ends, unless all ranks must
        run equally often.
        """
        self.strategy, self._until_the_vote = strategy, training
        self._agreed_length = max(strategy.gather_objects(self.length))  # on the rank that has most

    @property
    def length(self) -> int | float:
        """Batches of an epoch that begins now; infinity where that is not known. Its data may have grown."""
        return length_of(self._counted) if self._agreed_length is None else self._agreed_length

    def close(self) -> None:
        """End the workers that stayed (`persistent_workers`) with a loader of ours.

        The user's loader knows nothing of them. Left to the garbage collector, torch waits five seconds for each.
        """
        self.following = END
        own = getattr(self, "loader", self.given)
        if own is not self.given and getattr(own, "_iterator", None) is not None:
            own._iterator._shutdown_workers()

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch. All ranks call it together."""
        self.replaying = self.ended = False
        batches = self._begin()
        if self.strategy is not None and (self._until_the_vote or self.strategy.equal_batches):
            batches = self._with_others(batches, self.strategy)
        return itertools.islice(batches, None if self.limit == math.inf else int(self.limit))

    def _begin(self) -> Iterator[Any]:
        """This rank's own batches of an epoch."""
        raise NotImplementedError

    def _note_position(self) -> None:
        """A batch is about to be read ahead: keep what a run needs that resumes before it."""

    def _one_ahead(self, batch: Any, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches. Before one is given the next one is read, so that it is known whether it has `ended`, and its
        copy to the device begins. What goes wrong with the next one is raised in its own turn.
        """
        failure, copy, notes = None, self.copy, self._notes
        batches = itertools.islice(batches, None if self.limit == math.inf else max(0, int(self.limit) - 1))
        while batch is not END:
            if notes:
                self._note_position()
            try:
                following = self.following = next(batches, END)
                if copy is not None and following is not END:
                    following = copy(following)
            except Exception as error:
                following, failure = END, error
            self.ended = following is END and failure is None
            yield batch
            if failure is not None:
                raise failure
            batch = following

    def _first(self, batches: Iterator[Any], strategy: Strategy) -> Any:
        """This rank's first batch, or another rank's. Collective.

        Raises:
            MisconfigurationException: on all ranks, where one has had batches in another epoch and has none now.
        """
        batch = next(batches, END)
        found = strategy.gather_objects((batch is not END, self.gave_batches))  # collective: all begin together
        have = [has for has, _ in found]
        empty = [rank for rank, (has, had) in enumerate(found) if had and not has]
        if empty:
            raise MisconfigurationException(f"rank {empty[0]}: {cannot_be_iterated_twice(self.given)}")
        if any(have) and not all(have):
            lent = strategy.broadcast(batch, src=have.index(True))
            if batch is END:
                batch, self.replaying = lent, True
        return batch

    def _with_others(self, batches: Iterator[Any], strategy: Strategy) -> Iterator[Any]:
        batch = self._first(batches, strategy)
        going_on = batch is not END
        while going_on:
            self.ended = self.ended or self.replaying
            yield batch
            following = END if self.replaying else next(batches, END)
            self.replaying = following is END
            batch = batch if self.replaying else following
            # In training the vote ends the epoch. Collective: once a batch, on all ranks.
            going_on = self._until_the_vote or strategy.any(not self.replaying)


class SharedLoader(RankLoader):
    """A rank's share of a map-style `DataLoader`: over all ranks each sample once an epoch.

    Args:
        loader: The user's; its data set, collate function and workers are kept, its sampler says what an epoch is.
        strategy: Which rank of how many; with one process it gives what the loader gives.
        stand_ins: See `ShareSampler`.
        by_epoch: Shuffle by seed and epoch where the loader's own `RandomSampler` would shuffle from the random state.
            By default where the strategy deals samples out.
        seed: For an order by seed and epoch; the run's seed by default.
        alone: The loader holds this rank's samples alone: nothing is dealt out.

    Example:
        >>> from espnet3_lite.distributed.single import Strategy
        >>> shared = SharedLoader(DataLoader([1, 2, 3], batch_size=2), Strategy(torch.device("cpu")))
        >>> [batch.tolist() for batch in shared]
        [[1, 2], [3]]
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        strategy: Strategy,
        stand_ins: bool = True,
        by_epoch: bool | None = None,
        seed: int | None = None,
        alone: bool = False,
    ):
        super().__init__(loader)
        here = (strategy.world_size, strategy.global_rank)
        ranks, rank = (1, 0) if alone else here
        self.order, own_step, split = how_dealt(loader)
        if _is_plain_shuffle(self.order) and (strategy.deals_out and not alone if by_epoch is None else by_epoch):
            self.order = EpochSampler(self.order.data_source, seed=seed)
            self._told.append(self.order)
        #: Its order is drawn from the random state, and not from seed and epoch.
        by_epoch_alone = (EpochSampler, SequentialSampler)  # and ours of batches: all ranks know such an order
        self.is_drawn = not (isinstance(self.order, by_epoch_alone) or hasattr(self.order, "batch_distribution"))
        self.step_size = own_step if split == "batch" else own_step * ranks
        seeded = seeded_in_workers(loader, seed)
        self._told += [seeded["dataset"]] if seeded else []
        self.sampler = ShareSampler(
            self.order, self.step_size, ranks, rank, split,
            drop_last=split == "samples" and getattr(loader.batch_sampler, "drop_last", False),
            stand_ins=stand_ins, placed=bool(seeded), places=here if alone else (1, 0),
            agree=strategy.broadcast if ranks > 1 and self.is_drawn else None,
        )  # fmt: skip
        self._counted = self.sampler
        self.loader = rebuild(loader, **seeded, **{"sampler" if split == "single" else "batch_sampler": self.sampler})

    def _begin(self) -> Iterator[Any]:
        """The epoch's order is drawn now, no sample is fetched in this process."""
        self.sampler.position = self.position
        batches = begin(self.loader)
        self.sampler.draw()
        self.sampler.position = 0
        return self._marked(batches)

    def _marked(self, batches: Iterator[Any]) -> Iterator[Any]:
        given, marks = 0, self.sampler.marks
        for batch in batches if self.copy is None else self._one_ahead(next(batches, END), batches):
            self.replaying, self.ended = marks.popleft()
            given += 1
            yield batch
        self.replaying = False
        if marks:
            raise RuntimeError(
                f"a loader ended after {given} batches of an epoch, though its sampler had more: a StopIteration "
                f"came out of {type(self.given.dataset).__name__}.__getitem__ or the collate function (a `next(...)` "
                f"without a default, on something that is at its end)"
            )


class StreamLoader(RankLoader):
    """A loader without indices: an iterable data set, a list or a generator of batches, a loader of the user's own.

    In training it is read one batch ahead, so that the last batch is known as such whatever its length says.

    Args:
        loader: The user's.
        ahead: Read one batch ahead.
    """

    def __init__(self, loader: Any, ahead: bool):
        super().__init__(loader)
        self.loader, self.ahead = loader, ahead
        #: It is read in this process, and may draw from its generators.
        self._may_draw = not isinstance(loader, (list, tuple)) and not getattr(loader, "num_workers", 0)
        self._notes = self._may_draw or hasattr(loader, "state_dict")
        self._own: dict[str, Generator] = {}  # that the loader, its data set and the like keep for themselves
        # Workers that stay would keep their random state and their epoch; others get both with each epoch.
        # What has indices here, or keeps its own position, iterates in its own way, and by no copy.
        they_stay = isinstance(loader, DataLoader) and loader.persistent_workers and not is_map_style(loader)
        if they_stay and not isinstance(loader.dataset, IterDataPipe) and not hasattr(loader, "state_dict"):
            changes = seeded_in_workers(loader)
            self._told, self.loader = [changes["dataset"]], rebuild(loader, **changes)

    def _begin(self) -> Iterator[Any]:
        """What is left out, and the first batch, are read now."""
        self._state = None
        self._own = generators_in({"loader": self.given}) if self._may_draw else {}
        batches = begin(self.loader)
        collections.deque(itertools.islice(batches, self.position), maxlen=0)
        state, self.resumed = self.resumed, {}
        if state.get("ahead") is not None:
            restore_random_state(state["ahead"], self._own)
        if not self.ahead:
            return batches
        first = next(batches, END)
        warn_of_other_stream(self.given, state.get("mark"), first)
        return self._one_ahead(first, batches)

    def _note_position(self) -> None:
        if hasattr(self.given, "state_dict"):
            self._state = copy.deepcopy(self.given.state_dict())
        if self._may_draw:
            self.random_state = collect_random_state(self._own)


def is_map_style(loader: Any) -> bool:
    """True for a `DataLoader` whose samples have indices."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def check_same_epochs(loader: DataLoader[Any], strategy: Strategy) -> None:
    """An epoch has an end, and is the same one on all ranks. Collective.

    Raises:
        MisconfigurationException: on all ranks.
    """
    items, step_size, split = how_dealt(loader)
    kind = "samples" if split == "samples" else "batches"
    length = length_of(items)
    strategy.require_same(  # collective: all ranks prepare it together
        {"the loader": f"{length} {kind}, {step_size} a step"},
        "Each rank must give the same loader, over all samples, which is then dealt out; where each rank has data of "
        "its own, set Trainer(use_distributed_sampler=False)",
    )
    if length == math.inf:
        raise MisconfigurationException(
            f"a loader's {type(items).__name__} has no `__len__`, and so an epoch of it cannot be dealt out to the "
            f"ranks. Define `__len__`, or let each rank draw its own with Trainer(use_distributed_sampler=False)"
        )


def how_dealt(loader: DataLoader[Any]) -> tuple[Any, int, str]:
    """What a loader's epoch consists of: the items' sampler, how many one process takes a step, and `split`."""
    batch_sampler = loader.batch_sampler
    if batch_sampler is None:
        return loader.sampler, 1, "single"
    if type(batch_sampler) is BatchSampler:
        return batch_sampler.sampler, batch_sampler.batch_size, "samples"
    whole = getattr(batch_sampler, "batch_distribution", "per_gpu") != "global"
    return batch_sampler, 1, "batches" if whole else "batch"


#: What torch lets a program set on a loader that is made.
_SETTABLE = ("collate_fn", "num_workers", "worker_init_fn", "generator", "pin_memory", "prefetch_factor", "timeout")


def settings_of(loader: Any) -> list[Any]:
    """What a program may set anew on a `DataLoader` of which there is a copy."""
    own = (getattr(loader, name, None) for name in _SETTABLE)
    drop_last = getattr(getattr(loader, "batch_sampler", None), "drop_last", None)
    return [*how_dealt(loader), drop_last, *own] if isinstance(loader, DataLoader) else []


def _is_plain_shuffle(items: Any) -> bool:
    return type(items) is RandomSampler and not items.replacement and items.num_samples == len(items.data_source)


def rebuild(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """A copy of a `DataLoader`, of its own class, with another data set or sampler."""
    clone = copy.copy(loader)
    vars(clone).update(_iterator=None, **changes)  # torch refuses to have these set, so that workers know of them
    return clone


def begin(loader: Any) -> Iterator[Any]:
    """Iterate over a loader, which draws its workers' seed from the random state now.

    Where its workers have stayed from an epoch before (`persistent_workers`), torch would draw none. A run that resumes
    has new workers: for its random numbers to be the same ones, a seed is drawn in either case.
    """
    if getattr(loader, "persistent_workers", False) and getattr(loader, "_iterator", None) is not None:
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    return iter(loader)


def length_of(loader: Any) -> int | float:
    """Batches in a loader; infinity where it does not say."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # an iterable data set without __len__
        return math.inf
