"""What loggers have in common whose runs a service keeps: which checkpoints are sent, and which run is gone on with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from espnet3_lite.distributed.rank import rank_zero_only
from espnet3_lite.loggers.base import Logger

if TYPE_CHECKING:
    from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint


class HostedLogger(Logger):
    """A logger whose runs a service keeps under an id of its own.

    Args:
        log_model: Send checkpoints too: True those that are left at the end, ``"all"`` each one as it is saved.
        prefix: Put before every metric's name.
    """

    def __init__(self, log_model: bool | str, prefix: str):
        self._log_model, self._prefix = log_model, prefix
        self._saving: list[ModelCheckpoint] = []
        self._sent: dict[str, float] = {}

    # ---- what each service does in its way -------------------------------------------------------------------------

    def send_checkpoint(self, callback: ModelCheckpoint, path: str) -> None:
        """Send a file, or the folder of a sharded checkpoint."""
        raise NotImplementedError

    def log_home(self) -> dict[str, str]:
        """What a run belongs to, by the service's word for it: a project, an experiment."""
        raise NotImplementedError

    def known_id(self) -> str | None:
        """The run's id; None for one that has not begun."""
        raise NotImplementedError

    def go_on_with(self, run_id: str | None) -> None:
        """Log to the run of this id, if none has begun and no other was asked for."""
        raise NotImplementedError

    # ---- what they have in common ----------------------------------------------------------------------------------

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Send a checkpoint at once, or remember whom to ask for them at the end."""
        if self._log_model == "all" or (self._log_model is True and checkpoint_callback.save_top_k == -1):
            self._send(checkpoint_callback)
        elif self._log_model is True and checkpoint_callback not in self._saving:
            self._saving.append(checkpoint_callback)

    def send_what_is_left(self) -> None:
        """At the end of a run that went well: the checkpoints that are there now."""
        for callback in self._saving:
            self._send(callback)

    @rank_zero_only
    def _send(self, callback: ModelCheckpoint) -> None:
        """Send the files that a callback has now and that were not sent yet."""
        for path in filter(None, [*callback.best_k_models, callback.best_model_path, callback.last_model_path]):
            if os.path.exists(path) and self._sent.get(path) != os.path.getmtime(path):
                self._sent[path] = os.path.getmtime(path)
                self.send_checkpoint(callback, path)

    @rank_zero_only
    def state_dict(self) -> dict[str, Any]:
        """Which run this is."""
        return {"logger": type(self).__name__, **self.log_home(), "version": self.known_id()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with that run, if it has the same home.

        What was logged after the checkpoint stays: the service cannot take it back.
        """
        mine = {"logger": type(self).__name__, **self.log_home()}
        if mine.items() <= state.items():
            self.go_on_with(state["version"])
