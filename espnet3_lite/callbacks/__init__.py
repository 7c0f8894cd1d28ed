"""Reactions to what happens in a run, one callback a file. `base.py` says when each hook is called.

Every callback by its documented name; each is imported when it is first used.
"""

from typing import TYPE_CHECKING

from espnet3_lite.lazy_names import lazy_names

_HOME = {
    "Callback": "callbacks.base",
    "Checkpoint": "callbacks.base",
    "CallbackHandler": "callbacks.calling.handler",
    "get_default_callbacks": "espnet.default_callbacks",
    "ModelCheckpoint": "callbacks.model_checkpoint",
    "AverageCheckpointsCallback": "callbacks.average_checkpoints",
    "EarlyStopping": "callbacks.early_stopping",
    "LearningRateMonitor": "callbacks.lr_monitor",
    "MetricsLogger": "callbacks.metrics_logger",
    "ProgressBar": "callbacks.progress_bar",
    "ProgressBarBase": "callbacks.progress_bar",
    "TQDMProgressBar": "callbacks.tqdm_progress",
    "RichProgressBar": "callbacks.rich_progress",
    "ModelSummary": "callbacks.model_summary",
    "RichModelSummary": "callbacks.model_summary",
    "DeviceStatsMonitor": "callbacks.device_stats_monitor",
    "GPUStatsMonitor": "callbacks.device_stats_monitor",
    "Timer": "callbacks.timer",
    "BatchSizeFinder": "callbacks.batch_size_finder",
    "GradientNorm": "callbacks.gradient_norm",
    "Profiler": "callbacks.profiler",
    "LearningRateFinder": "callbacks.learning_rate_finder",
    "BasePredictionWriter": "callbacks.prediction_writer",
    "GradientAccumulationScheduler": "callbacks.gradient_accumulation_scheduler",
    "StochasticWeightAveraging": "callbacks.stochastic_weight_averaging",
    "WeightAveraging": "callbacks.weight_averaging",
    "EMAWeightAveraging": "callbacks.weight_averaging",
    "EMACallback": "callbacks.ema",
    "OptimizerModes": "callbacks.optimizer_modes",
    "ParameterFreezeCallback": "espnet.parameters",
    "PretrainedParametersCallback": "espnet.parameters",
    "BaseFinetuning": "callbacks.finetuning",
    "BackboneFinetuning": "callbacks.finetuning",
    "LambdaCallback": "callbacks.lambda_callback",
    "ModelPruning": "callbacks.pruning",
    "QuantizationAwareTraining": "callbacks.quantization",
    "TrainerCallback": "accelerated.trainer_callback",
    "TerminateOnNaNCallback": "accelerated.terminate_on_nan",
    "LogMetricsCallback": "accelerated.log_metrics",
    "PrintProgressCallback": "accelerated.print_progress",
    "ProgressBarCallback": "accelerated.progress_bar_callback",
    "SaveBestModelCallback": "accelerated.save_best_model",
    "EarlyStoppingCallback": "accelerated.early_stopping_callback",
    "MoveModulesToDeviceCallback": "accelerated.move_modules_to_device",
}

__all__ = list(_HOME)
if TYPE_CHECKING:  # for editors and type checkers: the same names (a test compares them)
    from espnet3_lite.accelerated.early_stopping_callback import EarlyStoppingCallback as EarlyStoppingCallback
    from espnet3_lite.accelerated.log_metrics import LogMetricsCallback as LogMetricsCallback
    from espnet3_lite.accelerated.move_modules_to_device import (
        MoveModulesToDeviceCallback as MoveModulesToDeviceCallback,
    )
    from espnet3_lite.accelerated.print_progress import PrintProgressCallback as PrintProgressCallback
    from espnet3_lite.accelerated.progress_bar_callback import ProgressBarCallback as ProgressBarCallback
    from espnet3_lite.accelerated.save_best_model import SaveBestModelCallback as SaveBestModelCallback
    from espnet3_lite.accelerated.terminate_on_nan import TerminateOnNaNCallback as TerminateOnNaNCallback
    from espnet3_lite.accelerated.trainer_callback import TrainerCallback as TrainerCallback
    from espnet3_lite.callbacks.average_checkpoints import AverageCheckpointsCallback as AverageCheckpointsCallback
    from espnet3_lite.callbacks.base import Callback as Callback
    from espnet3_lite.callbacks.base import Checkpoint as Checkpoint
    from espnet3_lite.callbacks.batch_size_finder import BatchSizeFinder as BatchSizeFinder
    from espnet3_lite.callbacks.calling.handler import CallbackHandler as CallbackHandler
    from espnet3_lite.callbacks.device_stats_monitor import DeviceStatsMonitor as DeviceStatsMonitor
    from espnet3_lite.callbacks.device_stats_monitor import GPUStatsMonitor as GPUStatsMonitor
    from espnet3_lite.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from espnet3_lite.callbacks.ema import EMACallback as EMACallback
    from espnet3_lite.callbacks.finetuning import BackboneFinetuning as BackboneFinetuning
    from espnet3_lite.callbacks.finetuning import BaseFinetuning as BaseFinetuning
    from espnet3_lite.callbacks.gradient_accumulation_scheduler import (
        GradientAccumulationScheduler as GradientAccumulationScheduler,
    )
    from espnet3_lite.callbacks.gradient_norm import GradientNorm as GradientNorm
    from espnet3_lite.callbacks.lambda_callback import LambdaCallback as LambdaCallback
    from espnet3_lite.callbacks.learning_rate_finder import LearningRateFinder as LearningRateFinder
    from espnet3_lite.callbacks.lr_monitor import LearningRateMonitor as LearningRateMonitor
    from espnet3_lite.callbacks.metrics_logger import MetricsLogger as MetricsLogger
    from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from espnet3_lite.callbacks.model_summary import ModelSummary as ModelSummary
    from espnet3_lite.callbacks.model_summary import RichModelSummary as RichModelSummary
    from espnet3_lite.callbacks.optimizer_modes import OptimizerModes as OptimizerModes
    from espnet3_lite.callbacks.prediction_writer import BasePredictionWriter as BasePredictionWriter
    from espnet3_lite.callbacks.profiler import Profiler as Profiler
    from espnet3_lite.callbacks.progress_bar import ProgressBar as ProgressBar
    from espnet3_lite.callbacks.progress_bar import ProgressBarBase as ProgressBarBase
    from espnet3_lite.callbacks.pruning import ModelPruning as ModelPruning
    from espnet3_lite.callbacks.quantization import QuantizationAwareTraining as QuantizationAwareTraining
    from espnet3_lite.callbacks.rich_progress import RichProgressBar as RichProgressBar
    from espnet3_lite.callbacks.stochastic_weight_averaging import (
        StochasticWeightAveraging as StochasticWeightAveraging,
    )
    from espnet3_lite.callbacks.timer import Timer as Timer
    from espnet3_lite.callbacks.tqdm_progress import TQDMProgressBar as TQDMProgressBar
    from espnet3_lite.callbacks.weight_averaging import EMAWeightAveraging as EMAWeightAveraging
    from espnet3_lite.callbacks.weight_averaging import WeightAveraging as WeightAveraging
    from espnet3_lite.espnet.default_callbacks import get_default_callbacks as get_default_callbacks
    from espnet3_lite.espnet.parameters import ParameterFreezeCallback as ParameterFreezeCallback
    from espnet3_lite.espnet.parameters import PretrainedParametersCallback as PretrainedParametersCallback
else:
    __getattr__, __dir__ = lazy_names(__name__, {name: f"espnet3_lite.{home}" for name, home in _HOME.items()})
