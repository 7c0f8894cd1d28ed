"""Environments in which the references are installed. Tests marked `reference` run programs there, each a process.

- ``ESPNET3_LITE_ESPNET_PYTHON``: a Python with espnet 202611 and what its recipes import, without Lightning.
- ``ESPNET3_LITE_LIGHTNING_PYTHON``: one with Lightning 2.6.6 beside it, for what ESPnet3 itself does.
- ``ESPNET3_LITE_VENDORS_PYTHON``: one with Lightning 2.6.6, wandb, mlflow, optuna with its integration and
  torchmetrics, for what people bring from there.
- ``ESPNET3_LITE_PACKAGES_PYTHON``: one with Lightning 2.6.6, scvi-tools and rl4co: packages that train with it.
- ``ESPNET3_LITE_PIPELINES_PYTHON``: one with torchvision, datasets, transformers, webdataset and lhotse, for where
  people's data comes from.
- ``ESPNET3_LITE_SPEECH_PYTHON``: one with Lightning 2.6.6, descript-audio-codec, encodec, vocos, parallel_wavegan and
  dvclive; ``ESPNET3_LITE_NEMO_PYTHON``: one with NeMo and the Lightning 2.4 that it wants: what speech is trained with.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Reference:
    """A Python of another environment, in which this package is found too."""

    def __init__(self, python):
        self.python = python

    def run(self, *words, cwd=ROOT, check=True):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment.pop("ESPNET3_LITE_USE_ESPNET", None)
        done = subprocess.run([self.python, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


def _reference(variable, what):
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} is not set: the Python of an environment with {what}")
    return Reference(python)


@pytest.fixture(scope="session")
def espnet():
    return _reference("ESPNET3_LITE_ESPNET_PYTHON", "espnet 202611 and without Lightning")


@pytest.fixture(scope="session")
def lightning():
    return _reference("ESPNET3_LITE_LIGHTNING_PYTHON", "espnet 202611 and Lightning 2.6.6")


@pytest.fixture(scope="session")
def vendors():
    return _reference("ESPNET3_LITE_VENDORS_PYTHON", "Lightning 2.6.6, wandb, mlflow, optuna and torchmetrics")


@pytest.fixture(scope="session")
def packages():
    return _reference("ESPNET3_LITE_PACKAGES_PYTHON", "Lightning 2.6.6, scvi-tools and rl4co")


@pytest.fixture(scope="session")
def pipelines():
    return _reference("ESPNET3_LITE_PIPELINES_PYTHON", "torchvision, datasets, transformers, webdataset and lhotse")


@pytest.fixture(scope="session")
def speech():
    return _reference("ESPNET3_LITE_SPEECH_PYTHON", "Lightning 2.6.6, GAN codecs and vocoders, and dvclive")


@pytest.fixture(scope="session")
def nemo():
    return _reference("ESPNET3_LITE_NEMO_PYTHON", "nemo_toolkit[asr] and Lightning 2.4")
