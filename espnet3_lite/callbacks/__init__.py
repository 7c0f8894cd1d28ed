"""Reactions to what happens in a run, one callback a file. `base.py` says when each hook is called.

Every callback by its documented name; each is imported when it is first used.
"""

from espnet3_lite.lazy_names import lazy_names

_HOME = {
    "Callback": "base",
    "Checkpoint": "base",
    "CallbackHandler": "handler",
    "get_default_callbacks": "default",
    "ModelCheckpoint": "model_checkpoint",
    "AverageCheckpointsCallback": "average_checkpoints",
    "EarlyStopping": "early_stopping",
    "LearningRateMonitor": "lr_monitor",
    "MetricsLogger": "metrics_logger",
    "ProgressBar": "progress_bar",
    "ProgressBarBase": "progress_bar",
    "TQDMProgressBar": "tqdm_progress",
    "ModelSummary": "model_summary",
    "RichModelSummary": "model_summary",
    "DeviceStatsMonitor": "device_stats_monitor",
    "GPUStatsMonitor": "device_stats_monitor",
    "Timer": "timer",
    "BatchSizeFinder": "batch_size_finder",
    "GradientAccumulationScheduler": "gradient_accumulation_scheduler",
    "StochasticWeightAveraging": "stochastic_weight_averaging",
    "WeightAveraging": "weight_averaging",
    "EMAWeightAveraging": "weight_averaging",
    "BaseFinetuning": "finetuning",
    "BackboneFinetuning": "finetuning",
    "LambdaCallback": "lambda_callback",
    "ModelPruning": "pruning",
    "QuantizationAwareTraining": "quantization",
    "TrainerCallback": "trainer_callback",
    "TerminateOnNaNCallback": "terminate_on_nan",
    "LogMetricsCallback": "log_metrics",
    "PrintProgressCallback": "print_progress",
    "ProgressBarCallback": "progress_bar_callback",
    "SaveBestModelCallback": "save_best_model",
    "EarlyStoppingCallback": "early_stopping_callback",
    "MoveModulesToDeviceCallback": "move_modules_to_device",
}

__all__ = list(_HOME)
__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{home}" for name, home in _HOME.items()})
