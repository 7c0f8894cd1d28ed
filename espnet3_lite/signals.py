"""Signals: the handler only sets a flag; the loop looks at it once a batch and ends the run in order."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class SignalFlag:
    """Notes SIGTERM and SIGUSR1 (preemption) and SIGINT (Ctrl-C) while a run is on.

    A second Ctrl-C raises `KeyboardInterrupt` at once. Handlers that were there before are put back by `uninstall`.
    """

    _WATCHED = ("SIGTERM", "SIGUSR1", "SIGINT")

    def __init__(self) -> None:
        #: The first signal that came, or None.
        self.received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Watch, from now on. Only a main thread can; elsewhere signals stay as they are."""
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            return
        for name in self._WATCHED:
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._previous[number] = signal.signal(number, self._note)

    def uninstall(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
