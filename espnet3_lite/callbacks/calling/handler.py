"""`CallbackHandler`: keeps callbacks in order and calls their events. What a hook means is said in `base.py`."""

from __future__ import annotations

import copy
import functools
import uuid
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import Callback, Checkpoint, MonitoringCallback
from espnet3_lite.callbacks.calling import foreign
from espnet3_lite.callbacks.calling.run_history import run_history_of
from espnet3_lite.callbacks.showing.step_means import RunningMeans
from espnet3_lite.checks.hooks import check_arguments
from espnet3_lite.exceptions import MisconfigurationException, MisconfigurationRuntimeError, nearest
from espnet3_lite.trainer.hook_table import EVENTS, HOOKS, LATE

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class CallbackHandler:
    """An ordered list of callbacks, and for each event the methods that are really overridden.

    The table is filled when a callback is added, so that an event nobody listens to costs one look-up. Exceptions are
    never swallowed: what a callback raises, the caller of the event gets.

    Args:
        callbacks: Called in this order; those that save checkpoints are moved to the end, the averaging callback last.
        trainer: Handed to callbacks by `call_event`, where the caller does not pass it on.

    Example:
        >>> class Hello(Callback):
        ...     def on_greeting(self, name):
        ...         print("hello", name)
        >>> import warnings; warnings.simplefilter("ignore")
        >>> handler = CallbackHandler([Hello()])
        >>> handler.call_event("on_greeting", "world")
        hello world
    """

    def __init__(self, callbacks: Iterable[Callback] = (), trainer: Trainer | None = None):
        self.trainer = trainer
        #: In order. A program may change it in place, also in a hook: see `_Callbacks`.
        self.callbacks: list[Callback] = _Callbacks(self)
        self._call: Any = None  # the state of the call in which these callbacks have met their trainer
        self.listeners: dict[str, list[Callable]] = {}
        #: Some callback may look at a training batch's outputs: see `looks_at_no_outputs`.
        self.outputs_wanted = True
        #: Some callback may look at gradients after a backward pass: see `looks_at_no_gradients`.
        self.gradients_wanted = True
        self._warned: set[tuple[type, str]] = set()
        #: Tells this handler from others; a copy of a trainer goes on with the same one.
        self.identity = uuid.uuid4().hex
        self.add_callbacks(callbacks)

    def add_callback(self, callback: Callback) -> None:
        """Add one callback, at its place in the order.

        Raises:
            TypeError: it is not a `Callback` (a class instead of an instance, say), nor one of Lightning's whose hooks
                are all known here.
            MisconfigurationRuntimeError: it would keep its state in a checkpoint under another one's key.
            MisconfigurationException: a hook of it does not take what the trainer calls it with.
        """
        self.add_callbacks([callback])

    def add_callbacks(self, callbacks: Iterable[Callback]) -> None:
        """Add `callbacks`, in their order. The table is filled once for all of them, also if one is refused."""
        try:
            for callback in callbacks:
                self._add(callback)
        finally:
            self.rebuild()

    def _add(self, callback: Callback) -> None:
        if not isinstance(callback, Callback):
            foreign.check(callback)
        if any(callback is other for other in self.callbacks):
            raise MisconfigurationException(
                f"{callback!r} is among the callbacks twice: each of its hooks would run twice"
            )
        self._refuse_same_state_key(callback)
        self._warn_about_unknown_hooks(callback)
        check_arguments(callback, Callback, {event: _listener(callback, event) for event in EVENTS})
        list.append(self.callbacks, callback)
        list.sort(self.callbacks, key=_place)  # stable: keeps the given order within a group

    def replace_callbacks(self, callbacks: Iterable[Callback]) -> None:
        """Have these callbacks and no others, in order."""
        given = [*callbacks]
        list.clear(self.callbacks)
        self.add_callbacks(given)

    def take_change(self, before: list[Callback]) -> None:
        """The list was changed in place. Within a call, who is new gets to know the trainer, and is set up.

        Args:
            before: What stood in it, and stands in it again if the change is refused.
        """
        try:
            self.replace_callbacks(self.callbacks)
        except Exception:
            self.replace_callbacks(before)
            raise
        trainer = self.trainer
        if trainer is None or trainer.state.stage is None or trainer.state is not self._call:
            return  # the call that begins will do it
        for callback in self.callbacks:
            if not any(callback is other for other in before):
                self._meet(callback, trainer)
                if (set_up := _listener(callback, "setup")) is not None:
                    set_up(trainer, trainer.lightning_module, str(trainer.state.fn))

    def rebuild(self) -> None:
        """Fill the table anew; a call that begins sees to it that what was changed by hand is known."""
        self.listeners = {event: self._find(event) for event in EVENTS}
        for event in EVENTS:
            if not HOOKS[event].last:
                continue
            kinds = tuple(_KINDS[kind] for kind in HOOKS[event].last)
            early: list[Callable[..., Any] | None] = []  # before the module's own hook
            late: list[Callable[..., Any] | None] = []  # after it
            for callback in self.callbacks:
                (late if isinstance(callback, kinds) else early).append(_listener(callback, event))
                late.append(_listener(callback, event + LATE))
            self.listeners[event] = [listener for listener in early if listener is not None]
            self.listeners[event + LATE] = [listener for listener in late if listener is not None]
        ends = [one for event in ("on_train_batch_end", "on_train_batch_end" + LATE) for one in self.listeners[event]]
        self.outputs_wanted = not all(hasattr(listener, "looks_at_no_outputs") for listener in ends)
        after_backward = self.listeners["on_after_backward"]
        self.gradients_wanted = not all(hasattr(listener, "looks_at_no_gradients") for listener in after_backward)
        if self.trainer is not None:
            self.trainer.hook_calls.fill()

    def begin_call(self, trainer: Trainer) -> None:
        """A call begins: callbacks get to know the trainer; in a fit, another trainer's start afresh.

        What an early stopping counted in one fold must not end the next one. A test keeps what the fit has found, such
        as the best checkpoint. What a program appended to the list itself, or took out of it, is as good as any other.
        """
        self.replace_callbacks(self.callbacks)
        self._call = trainer.state
        for callback in self.callbacks:
            self._meet(callback, trainer)
        if any(getattr(callback, "uses_run_history", False) for callback in self.callbacks):
            run_history_of(trainer)

    def _meet(self, callback: Callback, trainer: Trainer) -> None:
        if not isinstance(callback, Callback):
            return
        fitting = trainer.state.fn == "fit"
        is_ours = type(callback).__module__.partition(".")[0] == __name__.partition(".")[0]
        if is_ours or _keeps_state(callback):
            memory = vars(callback).setdefault("_memory", _Memory(_copied(vars(callback))))
            resets = getattr(callback, "reset_on_train", True)  # pytorch-accelerated's callbacks let users choose
            if fitting and resets and memory.fitted_in not in (None, self.identity):
                vars(callback).update(_copied(memory.first))
            if fitting:
                memory.fitted_in = self.identity
        callback._trainer = trainer

    def call_event(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Call `event` on every callback that has a method of that name, in order. Any name will do.

        Args:
            event: A hook's name, or one of your own.
            args: Handed on as they are.
            kwargs: Handed on as they are.
        """
        if event not in self.listeners:
            self.listeners[event] = self._find(event)
        for method in self.listeners[event]:
            method(*args, **kwargs)
        for method in self.listeners.get(event + LATE, ()):
            method(*args, **kwargs)

    def _find(self, event: str) -> list[Callable]:
        return [method for callback in self.callbacks if (method := _listener(callback, event)) is not None]

    def _refuse_same_state_key(self, callback: Callback) -> None:
        """Two callbacks that would keep their state under one key would lose one of them."""
        stateful = [c for c in self.callbacks if _keeps_state(c)]
        if _keeps_state(callback) and callback.state_key in [other.state_key for other in stateful]:
            raise MisconfigurationRuntimeError(
                f"Found more than one stateful callback of type `{type(callback).__name__}`: two of them keep state "
                f"under the key {callback.state_key!r}. Give them a `state_key` property that tells them apart"
            )

    def _warn_about_unknown_hooks(self, callback: Callback) -> None:
        """A misspelt hook never runs and nobody sees it: say so once, with the nearest name."""
        for name in dir(type(callback)):
            known = getattr(callback, "known_events", ())
            unknown = name.startswith("on_") and not hasattr(Callback, name) and name not in known
            if unknown and callable(getattr(callback, name)) and (type(callback), name) not in self._warned:
                self._warned.add((type(callback), name))
                warnings.warn(
                    f"{type(callback).__qualname__}.{name} is not a hook that the trainer calls; it runs only if you "
                    f"call_event({name!r}) yourself{nearest(name, EVENTS)}",
                    stacklevel=2,
                )


class _Callbacks(list[Any]):
    """The list of callbacks, which tells its handler of each change; a copy of it is a plain list."""

    def __init__(self, handler: CallbackHandler):
        super().__init__()
        self._handler = handler

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, ([*self],)


def _telling(name: str) -> Callable[..., Any]:
    change = getattr(list, name)

    @functools.wraps(change)
    def changed(self: _Callbacks, *args: Any, **kwargs: Any) -> Any:
        before = [*self]
        result = change(self, *args, **kwargs)
        self._handler.take_change(before)
        return result

    return changed


for _name in ("append", "extend", "insert", "remove", "pop", "clear", "__setitem__", "__delitem__", "__iadd__"):
    setattr(_Callbacks, _name, _telling(_name))


@dataclass
class _Memory:
    """What a callback was before any call, and which handler's trainer fitted with it last."""

    first: dict[str, Any]
    fitted_in: str | None = None


def _copied(value: Any) -> Any:
    """Plain containers, tensors and means anew; everything else as it is."""
    if type(value) is dict:
        return {key: _copied(part) for key, part in value.items()}
    if type(value) in (list, set, tuple):
        return type(value)(map(_copied, value))
    if type(value) is RunningMeans:  # a run adds to them
        return copy.deepcopy(value)
    return value.detach().clone() if type(value) is torch.Tensor else value


def _listener(callback: Callback, event: str) -> Callable | None:
    """What is called for `event`."""
    return callback._listener(event) if isinstance(callback, Callback) else foreign.listener(callback, event)


def _keeps_state(callback: Callback) -> bool:
    """True where a callback's class says what its state is."""
    base = Callback if isinstance(callback, Callback) else foreign.base_of(callback)
    return type(callback).state_dict is not base.state_dict


def _place(callback: Callback) -> int:
    """0 for ordinary callbacks, 1 for those that save, 2 for the average, which reads what was saved."""
    return getattr(callback, "place", 1 if isinstance(callback, Checkpoint) else 0)


#: What the table of hooks calls the callbacks that come after the module.
_KINDS = {"saving": Checkpoint, "monitoring": MonitoringCallback}
