"""What a trainer is made of, declared in one place; `Trainer.__init__` makes each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from espnet3_lite.module.data_module import is_overridden

if TYPE_CHECKING:
    from espnet3_lite.callbacks.handler import CallbackHandler
    from espnet3_lite.distributed.single import Strategy
    from espnet3_lite.loaders.epochs import TrainData
    from espnet3_lite.loggers.base import Logger
    from espnet3_lite.loops.evaluation import EvaluationLoop
    from espnet3_lite.loops.fit import FitLoop
    from espnet3_lite.metrics.collector import Metrics
    from espnet3_lite.module.data_module import LiteDataModule
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.optim.precision import Precision
    from espnet3_lite.trainer.hook_calls import HookCalls
    from espnet3_lite.trainer.setup import RunPlan
    from espnet3_lite.trainer.states import TrainerState
    from espnet3_lite.trainer.stopping import Stopping


class TrainerParts:
    """The attributes of a `Trainer` beside its settings. The properties that only tell are built on them."""

    #: What the trainer is doing: method, stage, status.
    state: TrainerState
    #: What the present or last call has prepared.
    plan: RunPlan
    strategy: Strategy
    precision_plugin: Precision
    callback_handler: CallbackHandler
    hook_calls: HookCalls
    #: `hook_calls.call`: calls a hook of the callbacks and the module.
    call: Callable[..., Any]
    stopping: Stopping
    metrics: Metrics
    loggers: list[Logger]
    fit_loop: FitLoop
    #: By ``val``, ``test`` and ``predict``.
    evaluation_loops: dict[str, EvaluationLoop]
    train_data: TrainData
    #: The module of the present or last call; there is none before the first.
    lightning_module: LiteModule
    datamodule: LiteDataModule | None
    #: What the call was given, by ``train``, ``val``, ``test``, ``predict``.
    given_loaders: dict[str, Any]
    ckpt_path: str | None
    return_predictions: bool
    #: Where to write how a call ended (`ESPnetTrainer` sets it); None: nowhere.
    status_file: Any

    @staticmethod
    def is_overridden(method: str, owner: object) -> bool:
        """True where a module or data module really defines a method."""
        return is_overridden(method, owner)
