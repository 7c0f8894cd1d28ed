"""Loaders of which nobody knows where they end: streams, and what each of several ranks has for itself.

As in `rank_share.py` a loader knows of the batch that it gave last whether it is the rank's last one (`ended`), and
whether it is `replaying`, with zero weight.
"""

from __future__ import annotations

import collections
import copy
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader
from torch.utils.data.datapipes.datapipe import IterDataPipe

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.rank_share import SharedLoader, begin, rebuild
from espnet3_lite.loaders.worker_seeds import seeded_in_workers, tell_epoch
from espnet3_lite.seed import collect_random_state, restore_random_state

if TYPE_CHECKING:
    from espnet3_lite.distributed.single import Strategy


_END = object()


class StreamLoader:
    """A loader without indices: an iterable data set, a list or a generator of batches, a loader of the user's own.

    In training it is read one batch ahead, so that the last batch is known as such whatever its length says.

    Args:
        loader: The user's.
        ahead: Read one batch ahead.
    """

    waits_for_others = replaying = False

    def __init__(self, loader: Any, ahead: bool):
        self.given, self.ahead = loader, ahead
        self.dataset = getattr(loader, "dataset", None)
        self.ended = False
        #: No batch after so many of an epoch is read.
        self.limit: int | float = math.inf
        self._skip = 0
        self._state: Any = None
        #: It is read in this process, and may draw from its generators: their state before the batch that was read
        #: ahead, and in a run that resumes what they are set to before the first batch that is not left out.
        self._may_draw = not isinstance(loader, (list, tuple)) and not getattr(loader, "num_workers", 0)
        self.random_state: dict[str, Any] | None = None
        self.resumed_random_state: dict[str, Any] | None = None
        self._seeded: Any = None
        self.loader = loader
        # Workers that stay would keep their random state and their epoch; others get both with each epoch.
        if isinstance(loader, DataLoader) and loader.persistent_workers and not isinstance(self.dataset, IterDataPipe):
            changes = seeded_in_workers(loader)
            self._seeded, self.loader = changes["dataset"], rebuild(loader, **changes)

    def __len__(self) -> int:
        return len(self.given)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is for this epoch, counted from 0."""
        tell_epoch(self.given, epoch)
        if self._seeded is not None:
            self._seeded.set_epoch(epoch)

    def start_at(self, batches: int) -> None:
        """Leave out the first batches of the next epoch; they must be read."""
        self._skip = batches

    def state_dict(self) -> Any:
        """The user's loader's own position behind the batch that was given last; None where it has none."""
        if not hasattr(self.given, "state_dict"):
            return None
        return self.given.state_dict() if self._state is None else self._state

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


class OwnLoader:
    """A loader of which each rank has its own batches, and maybe not as many as the others.

    That is an iterable data set, a loader that is not a `DataLoader`, or one that the user has dealt out. In training,
    a rank that has run out gives its last batch again and again, `replaying`, until the vote says that all are out; a
    rank that never had one gets another rank's. In evaluation it ends, unless all ranks must run equally often.

    Args:
        loader: This rank's.
        strategy: For the other ranks. Making an `OwnLoader` is a collective.
        training: Go on until all ranks are out.
        length: Batches on this rank; infinity where that is not known.
    """

    #: An epoch ends when the vote says that all ranks are out.
    waits_for_others = True

    def __init__(self, loader: SharedLoader | StreamLoader, strategy: Strategy, training: bool, length: int | float):
        self.source, self.strategy, self.training = loader, strategy, training
        self.given, self.dataset = loader.given, loader.dataset
        self.replaying = False
        #: This rank has no batch after the one that it gave last.
        self.ended = False
        self._had_batches = False
        self.length = max(strategy.gather_objects(length))  # collective: all ranks ask for their loaders together

    def __len__(self) -> int:
        if self.length == math.inf:
            raise TypeError(f"the number of batches in {type(self.given).__name__} is not known")
        return int(self.length)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is for this epoch, counted from 0."""
        self.source.set_epoch(epoch)

    def start_at(self, batches: int) -> None:
        """Leave out the first `batches` batches of the next epoch."""
        self.source.start_at(batches * getattr(self.source, "step_size", 1))

    def state_dict(self) -> Any:
        """The user's loader's own position; None where it has none."""
        return self.source.state_dict() if isinstance(self.source, StreamLoader) else None

    def __iter__(self) -> Iterator[Any]:
        self.replaying = self.ended = False
        batches = iter(self.source)
        if self.training:
            return self._until_all_are_out(batches)
        return self._equally_often(batches) if self.strategy.equal_batches else batches

    def _first(self, batches: Iterator[Any]) -> Any:
        """This rank's first batch, or another rank's. Collective.

        Raises:
            MisconfigurationException: on all ranks, where one has had batches in another epoch and has none now.
        """
        batch = next(batches, _END)
        found = self.strategy.gather_objects((batch is not _END, self._had_batches))  # collective: all begin together
        have = [has for has, _ in found]
        empty = [rank for rank, (has, had) in enumerate(found) if had and not has]
        if empty:
            raise MisconfigurationException(f"rank {empty[0]}: {cannot_be_iterated_twice(self.given)}")
        self._had_batches = have[self.strategy.rank]
        if any(have) and not all(have):
            lent = self.strategy.broadcast(batch, src=have.index(True))
            if batch is _END:
                batch, self.replaying = lent, True
        return batch

    def _until_all_are_out(self, batches: Iterator[Any]) -> Iterator[Any]:
        batch = self._first(batches)
        while batch is not _END:
            self.ended = self.replaying or self.source.ended
            yield batch
            if self.ended:
                self.replaying = True
            else:
                batch = next(batches)

    def _equally_often(self, batches: Iterator[Any]) -> Iterator[Any]:
        batch = self._first(batches)
        going_on = batch is not _END
        while going_on:
            yield batch
            following = _END if self.replaying else next(batches, _END)
            self.replaying = following is _END
            batch = batch if self.replaying else following
            going_on = self.strategy.any(not self.replaying)  # collective: once a batch, on all ranks


def cannot_be_iterated_twice(loader: Any) -> str:
    """What is wrong with a loader that gave batches in one epoch, and none in a later one."""
    return (
        f"the loader ({type(loader).__name__}) gave no batch in this epoch, though it did before: it cannot be "
        f"iterated over twice, as a generator or an iterator cannot. Give a DataLoader, a list, or an object whose "
        f"`__iter__` begins anew"
    )
