"""The four examples of pytorch-accelerated's page, pasted as a user would.

What differs from the page, besides the import: the first example's metrics come from a stand-in for torchmetrics with
the same three classes, and another notes what `mlflow` is told. The model is a `LiteModule`: what is called
``batch_output["model_outputs"]`` is what its steps return under that key.
"""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import LogMetricsCallback, TrainerCallback

FEATURES = torch.eye(4)[[0, 1, 2, 3, 0, 1]]
TARGETS = torch.tensor([0, 1, 2, 3, 1, 1])  # the model below names each feature's class: the fifth is wrong


class Classifier(LiteModule):
    """Scores are the features themselves."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        features, targets = batch
        scores = features.flatten(1) * self.scale
        return {"loss": torch.nn.functional.cross_entropy(scores, targets), "model_outputs": scores}

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data():
    return DataLoader(TensorDataset(FEATURES, TARGETS), batch_size=4)


def make(*callbacks, trainer=Trainer, **settings):
    return trainer(
        max_epochs=2, callbacks=list(callbacks), logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip


# ---- metrics over the evaluation ------------------------------------------------------------------------------------


class _Metric:
    """A stand-in for torchmetrics' classification metrics: macro means over the classes that occur."""

    def __init__(self, num_classes):
        self.confusion = torch.zeros(num_classes, num_classes)

    def update(self, predictions, targets):
        for prediction, target in zip(predictions, targets, strict=True):
            self.confusion[target, prediction] += 1

    def reset(self):
        self.confusion.zero_()


class Accuracy(_Metric):
    def compute(self):
        return self.confusion.trace() / self.confusion.sum()


class Precision(_Metric):
    def compute(self):
        return (self.confusion.diag() / self.confusion.sum(0)).mean()


class Recall(_Metric):
    def compute(self):
        return (self.confusion.diag() / self.confusion.sum(1)).mean()


class MetricCollection(dict):
    def to(self, device):
        self.device = device

    def update(self, predictions, targets):
        for metric in self.values():
            metric.update(predictions, targets)

    def compute(self):
        return {name: metric.compute() for name, metric in self.items()}

    def reset(self):
        for metric in self.values():
            metric.reset()


class ClassificationMetricsCallback(TrainerCallback):
    def __init__(self, num_classes):
        self.metrics = MetricCollection(
            {
                "accuracy": Accuracy(num_classes=num_classes),
                "precision": Precision(num_classes=num_classes),
                "recall": Recall(num_classes=num_classes),
            }
        )

    def _move_to_device(self, trainer):
        self.metrics.to(trainer.device)

    def on_training_run_start(self, trainer, **kwargs):
        self._move_to_device(trainer)

    def on_evaluation_run_start(self, trainer, **kwargs):
        self._move_to_device(trainer)

    def on_eval_step_end(self, trainer, batch, batch_output, **kwargs):
        preds = batch_output["model_outputs"].argmax(dim=-1)
        self.metrics.update(preds, batch[1])

    def on_eval_epoch_end(self, trainer, **kwargs):
        metrics = self.metrics.compute()
        trainer.run_history.update_metric("accuracy", metrics["accuracy"].cpu())
        trainer.run_history.update_metric("precision", metrics["precision"].cpu())
        trainer.run_history.update_metric("recall", metrics["recall"].cpu())

        self.metrics.reset()


def test_metrics_over_the_evaluation():
    callback = ClassificationMetricsCallback(num_classes=4)
    trainer = make(callback)
    trainer.fit(Classifier(), data(), data())
    assert callback.metrics.device == torch.device("cpu")
    history = trainer.run_history
    assert {name: history.get_metric_values(name) for name in ("accuracy", "precision", "recall")} == {
        "accuracy": [pytest.approx(5 / 6)] * 2,
        "precision": [pytest.approx((1 / 2 + 1 + 1 + 1) / 4)] * 2,
        "recall": [pytest.approx((1 + 2 / 3 + 1 + 1) / 4)] * 2,
    }
    trainer.validate(Classifier(), data(), verbose=False)
    assert len(history.get_metric_values("accuracy")) == 3


# ---- a logger for a platform ----------------------------------------------------------------------------------------


def test_a_logger_for_a_platform(monkeypatch):
    sent = []
    stand_in = SimpleNamespace(
        set_tracking_uri=lambda uri: sent.append(uri), set_tags=sent.append, log_metrics=sent.append
    )
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    import mlflow

    class AzureMLLoggerCallback(LogMetricsCallback):
        def __init__(self):
            mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])

        def on_training_run_start(self, trainer, **kwargs):
            mlflow.set_tags(trainer.run_config.to_dict())

        def log_metrics(self, trainer, metrics):
            if trainer.run_config.is_world_process_zero:
                mlflow.log_metrics(metrics)

    make(AzureMLLoggerCallback()).fit(Classifier(), data(), data())
    loss = torch.nn.functional.cross_entropy(FEATURES, TARGETS).item()
    assert sent[0] == "https://example.org"
    assert (sent[1]["num_epochs"], sent[1]["train_per_device_batch_size"]) == (2, 4)
    epoch = [{"eval_loss_epoch": pytest.approx(loss)}, {"train_loss_epoch": pytest.approx(loss)}]
    assert sent[2:] == epoch * 2


# ---- predictions to CSV ---------------------------------------------------------------------------------------------


def test_predictions_to_csv(tmp_path):
    pd = pytest.importorskip("pandas")
    from collections import defaultdict

    class SavePredictionsCallback(TrainerCallback):
        def __init__(self, out_filename="./outputs/valid_predictions.csv") -> None:
            super().__init__()
            self.predictions = defaultdict(list)
            self.out_filename = out_filename

        def on_eval_step_end(self, trainer, batch, batch_output, **kwargs):
            input_features, targets = batch
            class_preds = trainer.gather(batch_output["model_outputs"]).argmax(dim=-1)
            self.predictions["prediction"].extend(class_preds.cpu().tolist())
            self.predictions["targets"].extend(targets.cpu().tolist())

        def on_eval_epoch_end(self, trainer, **kwargs):
            trainer._accelerator.wait_for_everyone()
            if trainer.run_config.is_local_process_zero:
                df = pd.DataFrame.from_dict(self.predictions)
                df.to_csv(f"{self.out_filename}", index=False)

    path = tmp_path / "valid_predictions.csv"
    trainer = make(SavePredictionsCallback(path))
    trainer.validate(Classifier(), data(), verbose=False)
    assert path.read_text() == "prediction,targets\n0,0\n1,1\n2,2\n3,3\n0,1\n1,1\n"


# ---- an event of one's own ------------------------------------------------------------------------------------------


class VerifyBatchCallback(TrainerCallback):
    def verify_train_batch(self, trainer, xb, yb):
        assert xb.shape[0] == trainer.run_config["train_per_device_batch_size"]
        assert xb.shape[1] == 1
        assert xb.shape[2] == 28
        assert xb.shape[3] == 28
        assert yb.shape[0] == trainer.run_config["train_per_device_batch_size"]


class TrainerWithCustomCallbackEvent(Trainer):
    def calculate_train_batch_loss(self, batch) -> dict:
        xb, yb = batch
        self.callback_handler.call_event("verify_train_batch", trainer=self, xb=xb, yb=yb)
        return super().calculate_train_batch_loss(batch)


@pytest.mark.parametrize(("size", "images"), [(28, 4), (27, 4), (28, 3)])
def test_an_event_of_ones_own(size, images):
    class Counting(VerifyBatchCallback):
        count = 0

        def verify_train_batch(self, trainer, xb, yb):
            super().verify_train_batch(trainer, xb, yb)
            self.count += 1

    counting = Counting()
    trainer = make(counting, trainer=TrainerWithCustomCallbackEvent)
    pictures = TensorDataset(torch.zeros(images, 1, size, size), torch.zeros(images, dtype=torch.long))
    if (size, images) == (28, 4):
        trainer.fit(Classifier(), DataLoader(pictures, batch_size=2))
        assert (counting.count, trainer.global_step) == (4, 4)
    else:
        with pytest.raises(AssertionError):
            trainer.fit(Classifier(), DataLoader(pictures, batch_size=2))
