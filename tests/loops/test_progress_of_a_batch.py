"""Nothing of a batch outlives it: not its graph, not its tensors, not even where it was skipped."""

import weakref

import torch
from quiet import quiet_trainer

from espnet3_lite import Callback, LiteModule


class Watched(LiteModule):
    """Remembers each batch's hidden layer weakly; `skipped` batches have a loss that is not finite."""

    def __init__(self, skipped):
        super().__init__()
        self.layer, self.skipped, self.hidden, self.alive = torch.nn.Linear(2, 1), skipped, [], []

    def training_step(self, batch, batch_idx):
        self.alive.append([hidden() is not None for hidden in self.hidden])
        hidden = self.layer(batch) * (torch.inf if batch_idx in self.skipped else 1.0)
        self.hidden.append(weakref.ref(hidden))
        return hidden.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Listens(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.last = batch_idx


def fit(skipped, *callbacks):
    module = Watched(skipped)
    trainer = quiet_trainer(max_epochs=1, callbacks=list(callbacks))
    trainer.fit(module, [torch.ones(1, 2) for _ in range(4)])
    return module, trainer


def test_a_skipped_batchs_graph_is_gone_before_the_next_forward_pass():
    module, trainer = fit({1, 2}, Listens())
    assert module.alive == [[], [False], [False, False], [False, False, False]]
    assert trainer.global_step == 2


def test_after_a_fit_the_loop_holds_nothing_of_the_last_batch():
    module, trainer = fit({3})
    assert [hidden() for hidden in module.hidden] == [None] * 4
    work = trainer.fit_loop.work
    assert (work.batch, work.output, list(work.steps), list(work.losses), work.closing, work.stepped) == (
        None, None, [], [], [], [],
    )  # fmt: skip
