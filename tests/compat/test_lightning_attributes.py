"""What code written for Lightning reads from a trainer and its parts."""

import pytest
import torch

from espnet3_lite import LiteModule, Trainer

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [("bf16-mixed", "bf16-mixed"), ("bf16", "bf16-mixed"), (16, "16-mixed"), (64, "64-true"), (None, "32-true")],
)
def test_the_precision_is_a_string_and_the_object_has_another_name(given, expected):
    trainer = Trainer(precision=given, max_epochs=1, **QUIET)
    assert trainer.precision == expected and isinstance(trainer.precision, str)
    assert ("16" in trainer.precision) == ("16" in expected)
    assert trainer.precision_plugin.name == expected


def test_the_optimizer_behind_the_one_that_counts():
    class Manual(LiteModule):
        def __init__(self):
            super().__init__()
            self.layer, self.automatic_optimization, self.seen = torch.nn.Linear(1, 1), False, []

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.seen.append((optimizer._optimizer, optimizer.optimizer, self.optimizers(use_pl_optimizer=False)))
            self.manual_backward(self.layer(batch).sum())
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Manual()
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, [torch.ones(1, 1)])
    ((first, second, third),) = module.seen
    assert type(first) is torch.optim.SGD and first is second is third is trainer.optimizers[0]
