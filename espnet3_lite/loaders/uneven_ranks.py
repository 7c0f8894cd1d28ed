"""Loaders of which nobody knows where they end: streams, and what each of several ranks has for itself."""

from __future__ import annotations

import collections
import copy
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader
from torch.utils.data.datapipes.datapipe import IterDataPipe

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.rank_share import RankLoader, begin, length_of, rebuild
from espnet3_lite.loaders.worker_seeds import seeded_in_workers
from espnet3_lite.seed import collect_random_state, restore_random_state

if TYPE_CHECKING:
    from espnet3_lite.distributed.single import Strategy


_END = object()


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
        self._skip = 0
        self._state: Any = None
        #: It is read in this process, and may draw from its generators.
        self._may_draw = not isinstance(loader, (list, tuple)) and not getattr(loader, "num_workers", 0)
        # Workers that stay would keep their random state and their epoch; others get both with each epoch.
        they_stay = isinstance(loader, DataLoader) and loader.persistent_workers
        if they_stay and not isinstance(loader.dataset, IterDataPipe):
            changes = seeded_in_workers(loader)
            self._seeded, self.loader = changes["dataset"], rebuild(loader, **changes)

    def start_at(self, position: int) -> None:
        """Leave out the first `position` batches of the next epoch; they must be read."""
        self._skip = position

    def state_dict(self) -> Any:
        """The user's loader's own position behind the batch that was given last; None where it has none."""
        return super().state_dict() if self._state is None else self._state

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch. What is left out, and the first batch, are read now."""
        skip, self._skip = self._skip, 0
        self.ended, self._state = False, None
        batches = begin(self.loader)
        collections.deque(itertools.islice(batches, skip), maxlen=0)
        state, self.resumed_random_state = self.resumed_random_state, None
        if state is not None:
            restore_random_state(state)
        return self._marked(next(batches, _END), batches) if self.ahead else batches

    def _marked(self, batch: Any, batches: Iterator[Any]) -> Iterator[Any]:
        given = 0
        while batch is not _END:
            given += 1
            if hasattr(self.given, "state_dict"):
                self._state = copy.deepcopy(self.given.state_dict())  # before the next batch is read
            if self._may_draw:
                self.random_state = collect_random_state()
            following = next(batches, _END) if given < self.limit else _END
            self.ended = following is _END
            yield batch
            batch = following


class OwnLoader(RankLoader):
    """A loader of which each rank has its own batches, and maybe not as many as the others.

    That is an iterable data set, a loader that is not a `DataLoader`, or one that the user has dealt out. In training,
    a rank that has run out gives its last batch again and again, `replaying`, until the vote says that all are out; a
    rank that never had one gets another rank's. In evaluation it ends, unless all ranks must run equally often.

    Args:
        source: This rank's.
        strategy: For the other ranks. Making an `OwnLoader` is a collective.
        training: Go on until all ranks are out.
    """

    waits_for_others = True

    def __init__(self, source: RankLoader, strategy: Strategy, training: bool):
        super().__init__(source.given)
        self.source, self.strategy, self.training = source, strategy, training
        # On the rank that has most. Collective: all ranks ask for their loaders together.
        self.length = max(strategy.gather_objects(length_of(source.given)))

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is for this epoch, counted from 0."""
        self.source.set_epoch(epoch)

    def start_at(self, position: int) -> None:
        """Leave out the first `position` batches of the next epoch."""
        self.source.start_at(position * self.source.step_size)

    def state_dict(self) -> Any:
        """The user's loader's own position; None where it has none."""
        return self.source.state_dict()

    def __iter__(self) -> Iterator[Any]:
        self.replaying = self.ended = False
        batches = iter(self.source)
        return self._with_others(batches) if self.training or self.strategy.equal_batches else batches

    def _first(self, batches: Iterator[Any]) -> Any:
        """This rank's first batch, or another rank's. Collective.

        Raises:
            MisconfigurationException: on all ranks, where one has had batches in another epoch and has none now.
        """
        batch = next(batches, _END)
        found = self.strategy.gather_objects((batch is not _END, self.gave_batches))  # collective: all begin together
        have = [has for has, _ in found]
        empty = [rank for rank, (has, had) in enumerate(found) if had and not has]
        if empty:
            raise MisconfigurationException(f"rank {empty[0]}: {cannot_be_iterated_twice(self.given)}")
        if any(have) and not all(have):
            lent = self.strategy.broadcast(batch, src=have.index(True))
            if batch is _END:
                batch, self.replaying = lent, True
        return batch

    def _with_others(self, batches: Iterator[Any]) -> Iterator[Any]:
        batch = self._first(batches)
        going_on = batch is not _END
        while going_on:
            self.ended = self.replaying or self.source.ended
            yield batch
            following = _END if self.replaying else next(batches, _END)
            self.replaying = following is _END
            batch = batch if self.replaying else following
            # In training the vote ends the epoch. Collective: once a batch, on all ranks.
            going_on = self.training or self.strategy.any(not self.replaying)


def cannot_be_iterated_twice(loader: Any) -> str:
    """What is wrong with a loader that gave batches in one epoch, and none in a later one."""
    return (
        f"the loader ({type(loader).__name__}) gave no batch in this epoch, though it did before: it cannot be "
        f"iterated over twice, as a generator or an iterator cannot. Give a DataLoader, a list, or an object whose "
        f"`__iter__` begins anew"
    )
