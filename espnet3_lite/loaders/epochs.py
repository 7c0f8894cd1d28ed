"""The training loader over a whole run: its epochs, and where one goes on after a resume."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from espnet3_lite import seed
from espnet3_lite.checks.error_notes import cannot_be_iterated_twice, loader_in_words, other_data_in_words
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders import kept_order, requests
from espnet3_lite.loaders.rank_loader import RankLoader, SharedLoader, length_of, rebuild
from espnet3_lite.loaders.samplers import EpochSampler, global_seed

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class TrainData:
    """The training loader over a whole run: its length, its epochs, its position.

    Args:
        trainer: Settings (`limit_train_batches`, ...) and strategy.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.loader: RankLoader | None = None
        #: Batches an epoch, after the limit; infinity where the loader does not say.
        self.num_batches: int | float = math.inf
        #: The index of the batch that `start_epoch` begins with: not 0 in a run that resumes within an epoch.
        self.first_batch = 0
        #: Seconds that the run stood still for the batch in work: this loader alone, no validation and no hook.
        self.seconds_waited = 0.0
        #: The epoch and the random state in which the loader was asked for.
        self._request: dict[str, Any] = {"epoch": 0}
        #: The same of each rank in the run that is resumed, until this run asks.
        self.resumed_requests: list[dict[str, Any]] = []
        self._warned_of_length = False
        #: What iterates over the epoch in work, or will over the next; at first nothing was asked for.
        self.in_use = RankLoader(())
        #: What this epoch's order was drawn from: `random`, the global generators' state, and what `_kept` gives.
        self._begun: dict[str, Any] = {"random": None, "generators": {}, "order": {}, "items": None}
        #: Which attributes of the loader's parts have changed since an epoch began.
        self._changed_order: set[str] = set()
        #: What `state_dict` gave, for a run that resumes within an epoch.
        self.resume_state: dict[str, Any] | None = None

    @property
    def given(self) -> Any:
        """The user's loader; None before it was asked for."""
        return None if self.loader is None else self.loader.given

    def setup(self) -> None:
        """Ask for the loader, and count its batches. A run that resumes asks as the run did that was cut."""
        trainer = self.trainer
        now = {"epoch": trainer.current_epoch, "random": seed.collect_random_state(trainer.own_generators)}
        known, self.resumed_requests = self.resumed_requests or [now], []
        self._request = known[trainer.global_rank % len(known)]
        seed.restore_random_state(self._request["random"], trainer.own_generators)
        loader = requests.request_loaders(trainer, "train")
        if any(suffix for suffix, _ in requests.named_loaders(loader)):
            raise MisconfigurationException(
                f"train_dataloader gave a {type(loader).__name__} of loaders; give one loader "
                f"(combine the data sets with torch.utils.data.ConcatDataset or StackDataset)"
            )
        requests.check_loader(loader, "the training loader")
        if trainer.overfit_batches:
            loader = without_shuffling(loader)
        self.in_use = prepared = requests.prepare_loader(loader, trainer, True)
        self._use(prepared)
        if self.num_batches == 0:
            self._no_batches(had_some=False)

    def setup_if_due(self) -> None:
        """The first time, and by ``reload_dataloaders_every_n_epochs``."""
        every = self.trainer.reload_dataloaders_every_n_epochs
        if self.loader is None or (every and self.trainer.current_epoch - self._request["epoch"] >= every):
            self.setup()

    # ---- an epoch --------------------------------------------------------------------------------------------------

    def start_epoch(self, epoch: int, skip: int = 0, over: bool = False) -> Iterator[tuple[Any, bool]]:
        """Iterate over (batch, is it the epoch's last). All ranks call it.

        The order of the epoch is drawn now. Samples with indices are fetched in this process when their batch is asked
        for; of a stream what is left out, and the first batch, are read now.

        Args:
            epoch: From 0.
            skip: Leave out that many batches, which are over already; what has indices is not loaded. In a run that
                resumes, the checkpoint's own position counts, which another number of ranks may have reached.
            over: The epoch's last batch is among them: nothing is read.
        """
        assert self.loader is not None  # `setup_if_due`
        began, trainer = time.perf_counter(), self.trainer
        self._use(*requests.as_set_now([self.loader], trainer, True))
        trainer.plan.validation.count_batches()  # anew, since this epoch may have more batches than the last one
        state = self._restore(skip, over)
        self._begun = {"random": (over and state.get("random")) or seed.collect_random_state(), **self._kept()}
        self.in_use = loader = self._resumed_loader(state, self.loader)
        position, self.first_batch = self._place(state, loader, skip)
        # A loader that was given its place may take it back at its end alone (litdata's): it is read up to there.
        to_its_end = self._knows_its_position(state) and self.num_batches == length_of(self.given)
        limit = math.inf if to_its_end else max(1, self.num_batches - self.first_batch)
        loader.set_epoch(epoch, position, limit, trainer.plan.copy)
        loader.resumed = state
        return iter(()) if over else self._until_the_last(loader, iter(loader), time.perf_counter() - began)

    def _use(self, loader: RankLoader) -> None:
        """Count its batches by the limit as it is now."""
        self.loader = loader
        self.num_batches = requests.limited(loader.length, self.trainer.limit_train_batches, "limit_train_batches")

    def _place(self, state: dict[str, Any], loader: RankLoader, skip: int) -> tuple[int, int]:
        """Where an epoch begins or goes on: how many items over all ranks are left out, and the first batch's index."""
        position = skip * loader.step_size
        if skip and is_dealt_out(loader):
            position = position if state.get("position") is None else state["position"]
            skip = position // loader.step_size
            if loader.length != math.inf:  # the last batch's index stays what it was
                first = self.num_batches - loader.sampler.steps_after(position)
                skip = int(max(first, min(self.num_batches, skip)))
        elif self._knows_its_position(state):
            position = 0
        return position, skip

    def _until_the_last(self, loader: RankLoader, batches: Iterator[Any], waited: float) -> Iterator[tuple[Any, bool]]:
        index, count, length, alone = self.first_batch, self.num_batches, length_of(self.given), loader.strategy is None
        promised = 0 if length == math.inf else min(length, count)
        asked = time.perf_counter() - waited  # what `start_epoch` read was for the first batch
        for index, batch in enumerate(batches, self.first_batch + 1):
            self.seconds_waited = time.perf_counter() - asked
            loader.gave_batches = loader.gave_batches or not loader.replaying
            if loader.ended and index < promised and not loader.replaying and not self._warned_of_length:
                self._warned_of_length = True
                rank_zero_warn(
                    f"the training loader ({type(self.given).__name__}) gave {index} batches, though its length says "
                    f"{length}: its epochs end where it ends. Make `__len__` return the number of batches"
                )
            yield batch, index >= count or (alone and loader.ended)
            asked = time.perf_counter()
        if not index:
            self._no_batches(loader.gave_batches)

    def _no_batches(self, had_some: bool) -> None:
        """An epoch without any: an error where this loader had some before, here or in the run that is resumed."""
        if had_some or (self.trainer.ckpt_path is not None and self.trainer.fit_loop.batches_seen):
            raise MisconfigurationException(self.other_data() or cannot_be_iterated_twice(self.given))
        rank_zero_warn(f"the training loader gave no batch, so that nothing is trained: {loader_in_words(self.given)}")
        self.num_batches = 0

    @property
    def replaying(self) -> bool:
        """This rank has no data for the step in work, and takes part with zero weight."""
        return self.in_use.replaying

    def other_data(self, within: bool = False) -> str:
        """What to say of a run that resumes, `within` an epoch or not, with other data than it had; else nothing."""
        return other_data_in_words(self.given, (self.resume_state or {}).get("items"), self._items, within)

    @property
    def _items(self) -> int | float | None:
        """Samples (or whole batches) that an epoch is dealt out from; None for a loader without indices."""
        return length_of(self.loader.order) if is_dealt_out(self.loader) else None

    # ---- its position ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the order of the epoch in work was drawn from, and how much of it is over, whatever the number of ranks.

        All ranks call it. `position` counts samples over all ranks (whole batches where batches are dealt out), and is
        None for a loader without indices.
        """
        loader, fit_loop = self.in_use, self.trainer.fit_loop
        position, drawn, over = None, False, fit_loop.data_is_over
        if is_dealt_out(loader):
            done = fit_loop.batches_done - self.first_batch
            position, drawn = loader.position + done * loader.step_size, loader.is_drawn
        mine = {**self._begun, "request": self._request, **{key: now for key, now in self._kept().items() if over}}
        changed = {place: kept for place, kept in mine["order"].items() if place in self._changed_order}
        counted = fit_loop.work.index < fit_loop.batches_done  # else the next batch is the one in work
        mine.update(order=kept_order.plain_values(changed), mark=seed.mark_of(loader.following) if counted else 0)
        mine.update(ahead=loader.random_state, loader=loader.state_dict(over))
        ranks = self.trainer.strategy.gather_objects(mine)  # collective: all ranks save together
        return {
            **{key: [rank[key] for rank in ranks] for key in mine}, "over": over, "position": position,
            "items": mine["items"], "drawn": drawn, "seed": global_seed(), "ranks": len(ranks),
        }  # fmt: skip

    def _restore(self, skip: int, over: bool) -> dict[str, Any]:
        """Draw the same order as the epoch that was cut, unless its batches are over: then go on behind it.

        Returns:
            What this rank has of `state_dict`: less of it, or nothing, where less is known; nothing where the epoch
            that was cut is not this one.
        """
        if told := self.other_data(within=skip > 0 and not over):
            rank_zero_warn(told)
        saved, self.resume_state, rank = self.resume_state or {}, None, self.trainer.global_rank
        state = {key: part[rank % len(part)] if isinstance(part, list) else part for key, part in saved.items()}
        was_over, order = state.get("over"), state.get("order", {})
        if state.get("random") is not None and not was_over:
            seed.restore_random_state(state["random"])
        if known := state.get("generators"):  # those of a sampler stood as "sampler." in earlier versions' files
            seed.set_states(self._generators, {**{f"loader.{place}": one for place, one in known.items()}, **known})
        kept_order.put_back(self.given, order)
        self._changed_order.update(order)
        if self._knows_its_position(state):
            self.given.load_state_dict(state["loader"])
            if was_over:  # the iteration that was over, which the next one follows
                with seed.isolated_random_state(self._generators):
                    iter(self.given)
        return {} if was_over and not over else state

    def _knows_its_position(self, state: dict[str, Any]) -> bool:
        return state.get("loader") is not None and hasattr(self.given, "load_state_dict")

    @property
    def _generators(self) -> dict[str, seed.Generator]:
        return seed.generators_in({"loader": self.given})

    def _kept(self) -> dict[str, Any]:
        """What the loader, its samplers and its data set keep, by place: generators, lists and counts.

        Those that are not as they were when the epoch began belong to the order from now on.
        """
        order = kept_order.kept_order(self.given)
        self._changed_order |= {place for place, was in self._begun["order"].items() if order.get(place) != was}
        return {"generators": seed.states_of(self._generators), "order": order, "items": self._items}

    def _resumed_loader(self, state: dict[str, Any], loader: RankLoader) -> RankLoader:
        """What goes on with a cut epoch: for a map-style loader in the order in which it was begun."""
        strategy = self.trainer.strategy
        if not is_dealt_out(loader):
            if state.get("ranks") not in (None, strategy.world_size):
                rank_zero_warn(
                    f"the checkpoint was written by {state['ranks']} processes, this run has {strategy.world_size}: a "
                    f"loader without indices skips the same number of batches on each, so the rest of this epoch may "
                    f"repeat samples or miss some"
                )
            return loader
        if state.get("position") is None or (state["drawn"] == loader.is_drawn and state["seed"] == global_seed()):
            return loader
        return SharedLoader(loader.given, strategy, by_epoch=not state["drawn"], seed=state["seed"])


def is_dealt_out(loader: RankLoader | None) -> TypeGuard[SharedLoader]:
    """True where an epoch is one row of samples over all ranks, in which there is a position."""
    return isinstance(loader, SharedLoader) and loader.strategy is None


def without_shuffling(loader: Any) -> Any:
    """The loader in the data set's order (`overfit_batches`: the same batches each epoch)."""
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, (RandomSampler, EpochSampler)):
        return loader
    rank_zero_warn("overfit_batches: shuffling of the training loader is turned off")
    dataset: Any = loader.dataset
    sampler = SequentialSampler(dataset)
    size = loader.batch_size
    batches = None if size is None else BatchSampler(sampler, size, loader.drop_last)
    return rebuild(loader, sampler=sampler, batch_sampler=batches)
