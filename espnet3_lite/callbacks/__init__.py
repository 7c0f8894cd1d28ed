"""Reactions to what happens in a run, one callback a file. `base.py` says when each hook is called.

Every callback by its documented name; each is imported when it is first used.
"""

from espnet3_lite.lazy_names import lazy_names

_HOME = {
    "Callback": "callbacks.base",
    "Checkpoint": "callbacks.base",
    "CallbackHandler": "callbacks.handler",
    "get_default_callbacks": "espnet.default_callbacks",
    "ModelCheckpoint": "callbacks.model_checkpoint",
    "AverageCheckpointsCallback": "callbacks.average_checkpoints",
    "EarlyStopping": "callbacks.early_stopping",
    "LearningRateMonitor": "callbacks.lr_monitor",
    "MetricsLogger": "callbacks.metrics_logger",
    "ProgressBar": "callbacks.progress_bar",
    "ProgressBarBase": "callbacks.progress_bar",
    "TQDMProgressBar": "callbacks.tqdm_progress",
    "ModelSummary": "callbacks.model_summary",
    "RichModelSummary": "callbacks.model_summary",
    "DeviceStatsMonitor": "callbacks.device_stats_monitor",
    "GPUStatsMonitor": "callbacks.device_stats_monitor",
    "Timer": "callbacks.timer",
    "BatchSizeFinder": "callbacks.batch_size_finder",
    "GradientAccumulationScheduler": "callbacks.gradient_accumulation_scheduler",
    "StochasticWeightAveraging": "callbacks.stochastic_weight_averaging",
    "WeightAveraging": "callbacks.weight_averaging",
    "EMAWeightAveraging": "callbacks.weight_averaging",
    "EMACallback": "callbacks.ema",
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
__getattr__, __dir__ = lazy_names(__name__, {name: f"espnet3_lite.{home}" for name, home in _HOME.items()})
