"""Where metrics and hyper-parameters go, one kind of log a file. When they are logged is the trainer's."""

from espnet3_lite.loggers.base import Logger
from espnet3_lite.loggers.csv_logs import CSVLogger
from espnet3_lite.loggers.mlflow import MLFlowLogger
from espnet3_lite.loggers.tensorboard import TensorBoardLogger
from espnet3_lite.loggers.wandb import WandbLogger

__all__ = ["CSVLogger", "Logger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger"]
