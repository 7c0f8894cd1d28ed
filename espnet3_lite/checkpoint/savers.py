"""Saving while training goes on: who waits for what. How a file is written is in `files.py`.

Training waits for a copy of the state alone. What needs the file itself, such as the removal of the one whose place it
takes, waits for it; what touches files alone is done by the thread that wrote it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from espnet3_lite.checkpoint import files
from espnet3_lite.checkpoint.allowed_types import plain
from espnet3_lite.loaders.transfer import tensors_in


class Saver:
    """What is being saved, and what waits for it."""

    def __init__(self) -> None:
        #: `save` returns once the state is copied; what waits for it on disk is given to `when_saved`.
        self.in_background = False
        #: The files that are being written: their names are taken.
        self.coming: set[str] = set()
        self.under_way: Future[Any] | None = None
        self._waiting: list[Callable[[], object]] = []

    def save(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Write, or begin to; first see what was begun through to its end."""
        raise NotImplementedError

    def when_saved(self, action: Callable[[], object]) -> None:
        """Run `action` once all that was handed to `save` is on disk; never, if it could not be written."""
        if self.under_way is None:
            action()
        else:
            self._waiting.append(action)

    def behind(self, action: Callable[[], object]) -> None:
        """As `when_saved`, of what touches files alone: where a thread writes, it does this too."""
        self.when_saved(action)

    def poll(self) -> None:
        """Do what has waited, if the writing is over."""
        if self.under_way is not None and self.under_way.done():
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written, and do what has waited for it. Raises what the writing raised."""
        waiting, self._waiting = self._waiting, []
        self.coming.clear()
        if self.under_way is not None:
            under_way, self.under_way = self.under_way, None
            under_way.result()
        for action in waiting:
            action()


class FileSaver(Saver):
    """Writes files, in the background by a thread; one state at a time, under as many names as it gets."""

    def __init__(self) -> None:
        super().__init__()
        self._moment: tuple[object, object] = (None, None)
        self._thread: ThreadPoolExecutor | None = None  # of one thread, for the state that is being written
        self._copies: dict[tuple[object, ...], torch.Tensor] = {}  # by where the state has them

    def save(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Write, or copy the state and begin to.

        Args:
            checkpoint: Of the epoch and step whose file is being written, or that file is waited for.
            path: The file.
        """
        before, self._moment = self._moment, (checkpoint.get("epoch"), checkpoint.get("global_step"))
        rooms: dict[tuple[object, ...], torch.Tensor] = {}
        if not self.in_background or before != self._moment:
            self.finish()
            rooms, self._copies = self._copies, {}
        if not self.in_background:
            files.save_checkpoint(checkpoint, path)
            return
        state = self._copy(plain(checkpoint), rooms)
        self.coming.add(str(path))
        self._in_turn(lambda: files.save_checkpoint(state, path))

    def behind(self, action: Callable[[], object]) -> None:
        """A removal takes as long as a copy of the state, where the file is large."""
        when = self.when_saved if self.under_way is None else self._in_turn
        when(action)

    def _in_turn(self, work: Callable[[], object]) -> None:
        """Let the thread do it behind what it was given before, unless that fails."""
        before = self.under_way

        def do() -> None:
            if before is not None:
                before.result()
            work()

        self._thread = self._thread or ThreadPoolExecutor(1, "checkpoint")  # a program that ends waits for its thread
        self.under_way = self._thread.submit(do)

    def finish(self) -> None:
        """As of any saver; the thread ends with its work."""
        if not self.in_background:
            self._copies = {}
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None
        super().finish()

    def _copy(self, checkpoint: Any, rooms: dict[tuple[object, ...], torch.Tensor]) -> Any:
        """The state in main memory, where no training changes it; tensors that are one stay one.

        Args:
            checkpoint: The state.
            rooms: The copies of the state before, which may be written over. Memory that is new to the process costs
                more than twice the time, and much more where a GPU is to write to it by itself (pinned memory).
        """
        copies: dict[int, Any] = {}
        for tensor in tensors_in(checkpoint):
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            known = self._copies.get(place)
            if known is None or not torch.equal(known, tensor.detach().cpu()):
                if (room := rooms.pop(place, None)) is None:
                    room = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
                known = self._copies[place] = room.copy_(tensor.detach())
            copies[id(tensor)] = known
        return copy.deepcopy(checkpoint, copies)
