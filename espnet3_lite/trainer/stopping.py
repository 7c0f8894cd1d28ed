"""Signals: in a fit the handler only sets a flag; the loop looks at it once a batch and ends the run in order."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class SignalFlag:
    """Notes SIGTERM and SIGUSR1 (preemption) and SIGINT (Ctrl-C) while a run is on.

    A second Ctrl-C raises `KeyboardInterrupt` at once. Outside a fit there is nothing to save, and the first signal of
    any kind does. Handlers that were there before are put back by `uninstall`.
    """

    _WATCHED = ("SIGTERM", "SIGUSR1", "SIGINT")

    def __init__(self) -> None:
        #: The first signal that came, or None.
        self.received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}
        self._at_once, self._interrupted = False, False

    def install(self, at_once: bool = False) -> None:
        """Watch, from now on. Only a main thread can; elsewhere signals stay as they are.

        Args:
            at_once: The first signal already raises `KeyboardInterrupt`.
        """
        self.received, self._at_once, self._interrupted = None, at_once, False
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
        name, first = signal.Signals(number), self.received is None
        ctrl_c = name is signal.SIGINT
        second_ctrl_c, self._interrupted = ctrl_c and self._interrupted, ctrl_c or self._interrupted
        self.received = self.received or name
        if second_ctrl_c or (first and self._at_once):
            raise KeyboardInterrupt(name.name)
