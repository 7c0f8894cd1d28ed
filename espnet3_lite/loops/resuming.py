"""What a run that was cut still has to do: its random state, its epoch's end, what other callbacks had yet to save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from espnet3_lite.loops.progress import EpochStage
from espnet3_lite.optim import lr_stepping
from espnet3_lite.seed import generators_in
from espnet3_lite.seed import restore_random_state as restore

if TYPE_CHECKING:
    from espnet3_lite.loops.fit import FitLoop


def end_epoch(loop: FitLoop) -> None:
    """Where the state was saved while its epoch ended: the rest of that."""
    if loop.stage is EpochStage.SCHEDULERS_DUE:
        lr_stepping.step_with_epoch(loop.trainer, monitored=True)
    if loop.epoch_ended:
        states = loop.resumed_random_states
        restore_random_state(loop)
        save_what_was_due(loop)
        loop.resumed_random_states = states  # until training goes on others may draw
        loop.begin_next_epoch()


def save_what_was_due(loop: FitLoop) -> None:
    """Where the state was saved in a hook: checkpoint callbacks whose turn had not come there save now."""
    trainer = loop.trainer
    for callback in trainer.checkpoint_callbacks if trainer.auto_resume else ():
        if hasattr(callback, "save_what_was_due"):
            callback.save_what_was_due(trainer, trainer.lightning_module)


def restore_random_state(loop: FitLoop) -> None:
    """Put this rank's random state back, once, in a run that resumes."""
    states, loop.resumed_random_states = loop.resumed_random_states, None
    if states:
        state, validation = states[loop.trainer.global_rank % len(states)], loop.trainer.evaluation_loops["val"]
        if any(place.startswith("val.") for place in state.get("own", ())):
            validation.setup_if_due()  # its loaders were there, with generators of their own
        restore(state, generators_in(loop.trainer.own_parts, state.get("own", {})))
