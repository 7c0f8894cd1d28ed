"""A user's loader as one rank uses it: what every kind can do, and how ranks with unequal numbers of batches go on.

The two kinds are in `rank_share.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.worker_seeds import SeededInWorkers, tell_epoch

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
        others: The strategy by which the ranks wait for one another; None where all ranks' epochs end with the same
            step.
        replaying: While it is iterated over: the rank has nothing of its own in this step, and takes part in it with
            zero weight.
        ended: While it is iterated over: the batch that it gave last is the rank's last one of the epoch.
        gave_batches: The rank has had batches of its own in some epoch; who iterates over it says so.
        length: Batches an epoch; infinity where that is not known.
        step_size: Items (samples, or whole batches) of a step over all ranks.
        limit: No batch after so many of the next epoch is read ahead.
        copy: Begins to copy a batch to the device, one ahead of the step; None: batches are given as they were read.
        random_state: What this process's generators were like before the batch that was read ahead; None where no
            batch is.
        resumed_random_state: What they are set to in a run that resumes, before the first batch that is not left out.
    """

    def __init__(self, given: Any):
        self.given, self.step_size = given, 1
        self.others: Strategy | None = None
        self._until_the_vote = False
        self.replaying = self.ended = self.gave_batches = False
        self.limit: int | float = math.inf
        self.copy: Callable[[Any], OnItsWay] | None = None
        self.length = length_of(given)
        self.random_state: dict[str, Any] | None = None
        self.resumed_random_state: dict[str, Any] | None = None
        self._seeded: SeededInWorkers | None = None
        self._state: Any = None

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is for this epoch, counted from 0."""
        tell_epoch(self.given, epoch)
        if self._seeded is not None:
            self._seeded.set_epoch(epoch)

    def look_ahead(self, limit: int | float, copy: Callable[[Any], OnItsWay] | None) -> None:
        """Say how far the next epoch may be read ahead, and how its batches are copied ahead, if workers make them."""
        self.limit, self.copy = limit, copy if getattr(self.given, "num_workers", 0) else None

    def start_at(self, position: int) -> None:
        """Leave out so many of the next epoch's items."""
        raise NotImplementedError

    def state_dict(self, over: bool = False) -> Any:
        """The user's loader's own position behind the batch that was given last, or behind all that were read where the
        epoch is `over`; None where it has none."""
        if self._state is not None and not over:
            return self._state
        return self.given.state_dict() if hasattr(self.given, "state_dict") else None

    def wait_for(self, others: Strategy, training: bool) -> None:
        """Let the ranks run their epochs together, though each has its own number of batches. Collective.

        In training, a rank that has run out gives its last batch again and again, `replaying`, until the vote says that
        all are out; a rank that never had one gets another rank's. In evaluation its epoch ends, unless all ranks must
        run equally often.
        """
        self.others, self._until_the_vote = others, training
        self.length = max(others.gather_objects(self.length))  # on the rank that has most

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch. All ranks call it together."""
        self.replaying = self.ended = False
        batches = self._begin()
        if self.others is None or not (self._until_the_vote or self.others.equal_batches):
            return batches
        return self._with_others(batches, self.others)

    def _begin(self) -> Iterator[Any]:
        """This rank's own batches of an epoch."""
        raise NotImplementedError

    def _note_position(self) -> None:
        """A batch is about to be read ahead: keep what a run needs that resumes before it."""

    def _one_ahead(self, batch: Any, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches. Before one is given the next one is read, so that it is known whether it has `ended`, and its
        copy to the device begins. What goes wrong with the next one is raised in its own turn.
        """
        given, failure = 0, None
        while batch is not END:
            given, following = given + 1, END
            self._note_position()
            try:
                if given < self.limit and (following := next(batches, END)) is not END and self.copy is not None:
                    following = self.copy(following)
            except Exception as error:
                failure = error
            self.ended = following is END and failure is None
            yield batch
            if failure is not None:
                raise failure
            batch = following

    def _first(self, batches: Iterator[Any], others: Strategy) -> Any:
        """This rank's first batch, or another rank's. Collective.

        Raises:
            MisconfigurationException: on all ranks, where one has had batches in another epoch and has none now.
        """
        batch = next(batches, END)
        found = others.gather_objects((batch is not END, self.gave_batches))  # collective: all begin together
        have = [has for has, _ in found]
        empty = [rank for rank, (has, had) in enumerate(found) if had and not has]
        if empty:
            raise MisconfigurationException(f"rank {empty[0]}: {cannot_be_iterated_twice(self.given)}")
        if any(have) and not all(have):
            lent = others.broadcast(batch, src=have.index(True))
            if batch is END:
                batch, self.replaying = lent, True
        return batch

    def _with_others(self, batches: Iterator[Any], others: Strategy) -> Iterator[Any]:
        batch = self._first(batches, others)
        going_on = batch is not END
        while going_on:
            self.ended = self.ended or self.replaying
            yield batch
            following = END if self.replaying else next(batches, END)
            self.replaying = following is END
            batch = batch if self.replaying else following
            # In training the vote ends the epoch. Collective: once a batch, on all ranks.
            going_on = self._until_the_vote or others.any(not self.replaying)


def cannot_be_iterated_twice(loader: Any) -> str:
    """What is wrong with a loader that gave batches in one epoch, and none in a later one."""
    return (
        f"the loader ({type(loader).__name__}) gave no batch in this epoch, though there were batches before: "
        f"it is empty now, or it cannot be iterated over twice, as a generator or an iterator cannot. Give a "
        f"DataLoader, a list, or an object whose `__iter__` begins anew"
    )


def length_of(loader: Any) -> int | float:
    """Batches in a loader; infinity where it does not say."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # an iterable data set without __len__
        return math.inf
