"""SIGTERM to a rank that waits for other ranks: it ends some time later, though no handler of Python's can run.

Python runs signal handlers between two of its own instructions, and so never while a collective waits. The signal's
number, however, is written into a pipe at once (`signal.set_wakeup_fd`), where a thread reads it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from espnet3_lite.checkpoint.atomic_files import writes_under_way
from espnet3_lite.distributed.rank import global_rank

_TORCH, _HERE = Path(torch.__file__).parent, Path(__file__).parent
#: Where the main thread's innermost frame stands while it waits for other ranks: in a collective of torch's, in DDP,
#: in a backward pass that exchanges gradients, or where the outcome of a vote is read from the device.
_WAITING = (
    str(_TORCH / "distributed") + os.sep, str(_TORCH / "nn" / "parallel") + os.sep,
    str(_TORCH / "autograd" / "graph.py"), str(_HERE) + os.sep,
)  # fmt: skip
_LOOK_EVERY_SECONDS = 0.5
#: What `stop` sends to the thread; no signal has this number.
_ENOUGH = bytes(1)


class SigtermWatch:
    """Ends this process `grace` seconds after SIGTERM, where it waits for other ranks then.

    A rank that works goes on, and is looked at again: it hears the signal by itself, at the next batch. A file that is
    being written is finished first. Where another rank has failed, the signal comes from torchrun, and a rank that
    still works half a second later says where: it may be the one for which the others have waited in vain. Only a main
    thread can watch; in another one nothing happens.

    Args:
        grace: Seconds.
        failure: Tells what another rank reported that has failed; empty where none has.
        report: Told, before the end, where this rank waited.
    """

    def __init__(self, grace: float, failure: Callable[[], str], report: Callable[[str], object]):
        self._grace, self._failure, self._report = grace, failure, report
        self._ended = threading.Event()
        self._main = threading.main_thread()
        self._pipe: tuple[int, int] | None = None
        if threading.current_thread() is self._main:
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._previous = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, args=self._pipe[:1], name="SIGTERM watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Watch no more; what watched before does again."""
        if self._pipe is not None:
            signal.set_wakeup_fd(self._previous)
            self._ended.set()
            os.write(self._pipe[1], _ENOUGH)  # loader workers that stay hold this end open: closing it tells nothing
            os.close(self._pipe[1])
            self._thread.join()
            os.close(self._pipe[0])
            self._pipe = None

    def _watch(self, pipe: int) -> None:
        for number in iter(lambda: os.read(pipe, 1), _ENOUGH):
            if number[0] == signal.SIGTERM:
                break
        else:
            return
        if not self._ended.wait(_LOOK_EVERY_SECONDS) and self._failure():
            stack = "".join(traceback.format_stack(self._frame()))
            text = f"SIGTERM, since another rank has failed. Rank {global_rank()} still works:\n{stack}"
            print(text, file=sys.stderr, flush=True)
        waited_at: tuple[FrameType, int] | None = None
        pause = self._grace
        while not self._ended.wait(pause):
            pause = _LOOK_EVERY_SECONDS
            frame = self._frame()
            here = (frame, frame.f_lasti)
            waits = frame.f_code.co_filename.startswith(_WAITING)
            if waits and here == waited_at and not writes_under_way():
                self._end(frame)
            waited_at = here

    def _frame(self) -> FrameType:
        return sys._current_frames()[self._main.ident or 0]

    def _end(self, frame: FrameType) -> None:
        stack = "".join(traceback.format_stack(frame))
        text = f"ended by SIGTERM, {self._grace:g} s after it, since it still waited for the other ranks:\n{stack}"
        self._report(text)
        print(text, file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)
