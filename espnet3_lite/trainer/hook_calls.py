"""Who is called at each hook, in order: callbacks, then the module, then the callbacks that come last.

Which hooks there are is in `hook_table.py`; when each is called is the loops' decision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from espnet3_lite.exceptions import StopTrainingError
from espnet3_lite.trainer.hook_table import HOOK_OF, HOOKS

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class HookCalls:
    """Calls the hooks of one trainer's callbacks and module.

    Args:
        trainer: It is handed to the callbacks, with its module.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        #: The hooks that the module itself defines, `training_step` and the like among them.
        self.of_module: dict[str, Callable[..., Any]] = {}
        #: Event to listeners. A loop may keep this dict: it is filled anew, never replaced.
        self.listeners: dict[str, list[Callable[..., Any]]] = {}

    def find(self, module: LiteModule) -> None:
        """Look once which hooks the module really defines, so that the others cost nothing in the loop."""
        own = (name for name, hook in HOOKS.items() if "module" in hook.owners)
        self.of_module = {name: getattr(module, name) for name in own if self.trainer.is_overridden(name, module)}
        self.fill()

    def fill(self) -> None:
        """List the listeners of each event: callbacks with trainer and module filled in, then the module's own hook."""
        self.listeners.clear()
        for event, listeners in self.trainer.callback_handler.listeners.items():
            bound = [functools.partial(listener, self.trainer, self.trainer.lightning_module) for listener in listeners]
            self.listeners[event] = bound + ([self.of_module[event]] if event in self.of_module else [])

    def call(self, event: str, *args: Any) -> Any:
        """Call a hook. Returns what the last listener returned: the module, where it has the hook.

        Raises:
            StopTrainingError: a listener raised it, and nothing forbids to leave this place at once.
        """
        listeners = self.listeners[event]
        if not listeners:
            return None
        self.trainer.metrics.hook = HOOK_OF[event]
        response = None
        for listener in listeners:
            try:
                response = listener(*args)
            except StopTrainingError as error:
                # With several ranks, one alone must not leave what the others are in the middle of: it waits for the
                # next vote. And where the hook tells what has happened, the other listeners are told as well.
                if not HOOKS[HOOK_OF[event]].waits and self.trainer.world_size == 1:
                    raise
                response = None
                self.trainer.stopping.note(error)
        return response

    def call_module(self, hook: str, *args: Any) -> Any:
        """Call a hook of the module alone, of which it returns what it returned."""
        self.trainer.metrics.hook = hook
        return getattr(self.trainer.lightning_module, hook)(*args)

    def call_callbacks(self, event: str, *args: Any) -> None:
        """Call a hook of the callbacks alone, perhaps from within another hook (one that saves), which then goes on."""
        trainer = self.trainer
        outer, trainer.metrics.hook = trainer.metrics.hook, event
        trainer.callback_handler.call_event(event, trainer, trainer.lightning_module, *args)
        trainer.metrics.hook = outer
