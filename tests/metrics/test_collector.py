"""`Metrics` by itself, where no comparison with Lightning reaches: dtypes, laziness, metric objects, resuming."""

import copy

import line_model
import pytest
import torch
from metrics_lab import log, metrics_in
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, MisconfigurationException
from espnet3_lite.callbacks.showing.step_means import StepValues
from espnet3_lite.metrics.collector import batch_size_of


def test_the_mean_is_weighted_and_kept_in_float64():
    metrics = metrics_in()
    for size, value in ((2, 1.0), (6, 5.0)):
        metrics.start_batch(torch.ones(size, 1))
        log(metrics, "loss", torch.tensor(value), on_epoch=True)
    assert metrics.training[("training_step", "loss", None)].total == 32.0
    logged = metrics.end_epoch()
    assert logged == {"loss_epoch": torch.tensor(4.0)} and logged["loss_epoch"].dtype == torch.float32


def test_a_million_small_values_are_summed_right():
    metrics = metrics_in()
    log(metrics, "loss", torch.tensor(1.0), on_epoch=True, on_step=False, batch_size=1)
    entry = metrics.training[("training_step", "loss", None)]
    for _ in range(3):
        entry.update(1e-8, 1, torch.float32)
    entry.weight = 1
    assert entry.total == pytest.approx(1.00000003, abs=1e-12)


def test_a_value_that_was_logged_holds_no_graph_unless_wanted():
    value = torch.ones((), requires_grad=True) * 2
    metrics = metrics_in()
    log(metrics, "plain", value)
    log(metrics, "graph", value, enable_graph=True)
    assert not metrics.callback["plain"].requires_grad and metrics.callback["graph"].requires_grad


def test_a_group_of_ranks_is_refused_and_not_passed_over():
    class Line(LiteModule):
        def training_step(self, batch, batch_idx):
            self.log("loss", 1.0, sync_dist=True, sync_dist_group="half of them")

        def configure_optimizers(self):
            return None

    with pytest.raises(TypeError, match="unexpected keyword argument 'sync_dist_group'"):
        quiet_trainer(max_steps=1).fit(Line(), [torch.ones(1, 1)])


def test_versions_count_how_often_a_metric_was_published():
    metrics = metrics_in()
    log(metrics, "loss", 1.0)
    assert metrics.versions == {}  # nobody looked
    assert metrics.callback["loss"] == 1.0
    assert metrics.versions == {"loss": 1} and metrics.callback["loss"] == 1.0 and metrics.versions == {"loss": 1}


def test_a_discarded_batch_leaves_what_was_there():
    metrics = metrics_in()
    log(metrics, "loss", 1.0, on_epoch=True)
    metrics.start_batch(torch.ones(2, 1))
    log(metrics, "loss", 9.0, on_epoch=True)
    metrics.discard_since()
    assert metrics.callback["loss_step"] == 1.0
    assert metrics.end_epoch()["loss_epoch"] == 1.0


def test_a_discarded_value_that_somebody_looked_at_is_taken_back_too():
    metrics = metrics_in()
    log(metrics, "loss", 1.0)
    assert metrics.callback["loss"] == 1.0
    metrics.start_batch(torch.ones(2, 1))
    log(metrics, "loss", 9.0)
    assert metrics.callback["loss"] == 9.0
    versions = dict(metrics.versions)
    metrics.discard_since()
    assert metrics.callback["loss"] == 1.0 and metrics.versions == versions


class Accuracy:
    """A metric object, as libraries of them make it."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.right, self.total = 0, 0

    def add(self, right, total):
        self.right, self.total = self.right + right, self.total + total

    def compute(self):
        return torch.tensor(self.right / self.total)


def test_a_metric_object_is_computed_and_reset_at_the_epochs_end():
    metrics, accuracy = metrics_in("validation_step"), Accuracy()
    metrics.start_evaluation()
    for right, total in ((1, 2), (3, 6)):
        accuracy.add(right, total)
        log(metrics, "acc", accuracy)
    assert metrics.end_epoch()["acc"] == 0.5
    assert metrics.callback["acc"] == 0.5 and accuracy.compute() == 0.5  # the epoch's last hooks may look at it
    assert metrics.end_epoch(over=True) == {}, "what belongs to no loader: not this one once more"
    assert metrics.callback["acc"] == 0.5 and (accuracy.right, accuracy.total) == (0, 0)


def test_a_metric_object_that_two_loaders_share_begins_anew_with_the_second():
    metrics, accuracy = metrics_in("validation_step"), Accuracy()
    metrics.start_evaluation()
    for metrics.dataloader_idx, right in enumerate((1, 3)):
        metrics.loader_suffix = f"/dataloader_idx_{metrics.dataloader_idx}"
        accuracy.add(right, 4)
        log(metrics, "acc", accuracy)
        assert metrics.end_epoch()[f"acc/dataloader_idx_{metrics.dataloader_idx}"] == right / 4


def test_a_validations_last_hook_sees_what_a_metric_object_computes():
    """Lightning resets such objects after it, too; each validation begins anew."""
    seen = []

    class Module(LiteModule):
        def __init__(self):
            super().__init__()
            self.layer, self.accuracy = torch.nn.Linear(1, 1), Accuracy()

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

        def validation_step(self, batch, batch_idx):
            self.accuracy.add(batch_idx, 2)
            self.log("accuracy", self.accuracy)

        def on_validation_epoch_end(self):
            seen.append(float(self.accuracy.compute()))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=0)
    loader = torch.utils.data.DataLoader(torch.ones(3, 1))
    trainer.fit(Module(), loader, loader)
    assert seen == [0.5, 0.5] and trainer.callback_metrics["accuracy"] == 0.5


def test_sums_go_on_from_a_saved_state():
    metrics = metrics_in()
    log(metrics, "loss", 1.0, on_epoch=True)
    log(metrics, "most", 4.0, on_epoch=True, reduce_fx="max")
    resumed = metrics_in()
    state = metrics.state_dict()
    resumed.put_back(state)
    resumed.load_epoch(state)
    for name, value, how in (("loss", 3.0, "mean"), ("most", 2.0, "max")):
        log(resumed, name, value, on_epoch=True, reduce_fx=how)
    logged = resumed.end_epoch()
    assert logged == {"loss_epoch": torch.tensor(2.0), "most_epoch": torch.tensor(4.0)}


def test_a_run_that_resumes_may_log_in_another_way():
    """Such as the counts of named optimizers, which older checkpoints hold as means."""
    metrics = metrics_in()
    log(metrics, "loss", 1.0, on_epoch=True)
    log(metrics, "most", 9.0, on_epoch=True)
    log(metrics, "update_step", 3.0)
    resumed = metrics_in()
    resumed.load_epoch(metrics.state_dict())
    log(resumed, "loss", 3.0, on_epoch=True, prog_bar=True)
    log(resumed, "most", 2.0, on_epoch=True, reduce_fx="max")
    log(resumed, "update_step", 4.0, reduce_fx="max")
    assert resumed.step_values() == {"loss_step": 3.0, "most_step": 2.0, "update_step": 4.0}
    assert resumed.end_epoch() == {"loss_epoch": torch.tensor(2.0), "most_epoch": torch.tensor(2.0)}
    with pytest.raises(MisconfigurationException, match="`training_step`: called twice with different arg"):
        log(resumed, "most", 2.0, on_epoch=True, reduce_fx="min")


def test_what_a_hook_does_by_default_may_be_said():
    metrics = metrics_in()
    log(metrics, "loss", 1.0)
    log(metrics, "loss", 2.0, on_step=True)
    log(metrics, "loss", 4.0, on_step=True, on_epoch=False, reduce_fx=torch.mean)
    assert metrics.step_values() == {"loss": 4.0}
    with pytest.raises(MisconfigurationException, match="`training_step`: called twice with different arg"):
        log(metrics, "loss", 1.0, on_epoch=True)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        (torch.tensor(1.0), 1),
        ([torch.zeros(4), torch.zeros(2)], 4),
        (("a", {"x": ["b", torch.zeros(5, 1)]}), 5),
        ({"n": 3, "s": "text"}, 1),
        (None, 1),
    ],
)
def test_batch_sizes(batch, size):
    assert batch_size_of(batch) == size


def anew(steps, metrics):
    """The values of a batch that ends here, which is the only one noted."""
    steps.note(metrics)
    (values,) = steps.anew()
    return values


def test_what_a_step_logged_is_given_once_and_not_published():
    metrics, steps = metrics_in(), StepValues()
    log(metrics, "loss", 1.0, on_epoch=True)
    log(metrics, "mean", 1.0, on_step=False, on_epoch=True)
    assert anew(steps, metrics) == {"loss": 1.0, "loss_step": 1.0}
    assert metrics.versions == {}  # nothing was published for it
    assert metrics.callback["loss"] == 1.0  # now it was
    assert anew(steps, metrics) == {}
    log(metrics, "loss", 2.0, on_epoch=True)
    log(metrics, "loss", 2.0, on_epoch=True)  # the same number, logged anew
    assert anew(steps, metrics) == {"loss": 2.0, "loss_step": 2.0}
    assert metrics.end_epoch() == {"loss_epoch": pytest.approx(5 / 3), "mean": 1.0}
    assert anew(steps, metrics) == {}


def test_what_a_batchs_last_hooks_log_is_given_with_the_next_batch():
    metrics, steps = metrics_in(), StepValues()
    for number in (1.0, 2.0):
        metrics.start_batch(None)
        log(metrics, "loss", number)
        expected = {"loss": number} if number == 1.0 else {"loss": number, "late": 1.0}
        assert anew(steps, metrics) == expected
        metrics.hook = "on_train_batch_end"
        log(metrics, "late", number)
        metrics.hook = "training_step"
    assert anew(copy.deepcopy(steps), metrics) == {"loss": 2.0, "late": 2.0}  # a copy has noted nothing
    assert anew(steps, metrics) == {"late": 2.0}


def test_what_follows_a_discarded_value_is_new_though_that_was_looked_at():
    metrics, steps = metrics_in(), StepValues()
    metrics.start_batch(None)
    log(metrics, "loss", 1.0, on_epoch=True)
    assert anew(steps, metrics) == {"loss": 1.0, "loss_step": 1.0}
    metrics.discard_since()  # a rank without data has replayed the batch
    metrics.start_batch(None)
    log(metrics, "loss", 2.0, on_epoch=True)
    assert anew(steps, metrics) == {"loss": 2.0, "loss_step": 2.0}
    metrics.start_batch(None)
    log(metrics, "loss", 3.0, on_epoch=True)
    metrics.discard_since()  # a batch that is skipped
    assert anew(steps, metrics) == {}


def test_how_often_a_value_counts_as_new_does_not_depend_on_who_looks():
    class Looks(Callback):
        def __init__(self, every):
            self.every = every

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx % self.every == 0:
                assert trainer.callback_metrics  # publishes

    class Logs(line_model.Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, on_step=True, on_epoch=False)
            return loss

    versions = []
    for every in (1, 2, 3):
        trainer = quiet_trainer(max_epochs=1, callbacks=[Looks(every)])
        trainer.fit(Logs(), DataLoader(torch.ones(6, 1), batch_size=1))
        versions.append(trainer.metrics.state_dict()["versions"])
    assert versions == [{"loss": 6}] * 3
