"""Which hooks a run calls, in order. A callback with one method for each of them writes down its name.

python examples/tour/03_hooks_in_order.py
"""

import torch

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import LambdaCallback
from espnet3_lite.callbacks.base import HOOKS

called = []


def note(hook):
    """A function for `LambdaCallback` that remembers the hook's name."""
    return lambda *arguments: called.append(hook)


class Line(LiteModule):
    """The smallest module that trains and validates."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


#: `HOOKS` has every hook in the order in which a run calls it. These two are left out: they are called only on errors.
hooks = [hook for hook in HOOKS if hook not in ("on_stop_training_error", "on_exception")]
listener = LambdaCallback(**{hook: note(hook) for hook in hooks})
trainer = Trainer(
    max_epochs=1,
    accelerator="cpu",
    callbacks=[listener],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
data = [torch.ones(1, 2)]
trainer.fit(Line(), data, data)

in_training = called[called.index("on_train_start") :]
for hook in in_training:
    print(hook)
