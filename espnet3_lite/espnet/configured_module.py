"""A user's own `LiteModule` as ``model:`` of a configuration, which gives it its data and its optimizer.

Models in ESPnet's contract are wrapped instead (`module.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espnet3_lite.config.targets import instantiate
from espnet3_lite.espnet.module import ESPnetModule, refuse_settings_of_one_optimizer
from espnet3_lite.module.lite_module import LiteModule


class _FromConfiguration(ESPnetModule):
    """What a configuration says about a module that has steps of its own; batches are as torch makes them."""

    contract = False
    model: LiteModule

    @property
    def current_epoch(self) -> int:
        """The module's, which the trainer runs."""
        return self.model.current_epoch

    def configure_optimizers(self) -> Any:
        """Those of the configuration, whose names the module that is trained has to know."""
        made = super().configure_optimizers()
        if self.named_optimizers:
            refuse_settings_of_one_optimizer(self.model._trainer)
        # torch's stubs take every unknown attribute of a module for a tensor or a module.
        self.model.named_optimizers = self.named_optimizers  # type: ignore[assignment]
        return made

    def _collate_fn(self) -> Any:
        config: Any = self.config.get("dataloader") or {}
        return instantiate(config.collate_fn) if config.get("collate_fn") else None


def configure(module: LiteModule, config: Mapping[str, Any]) -> LiteModule:
    """Give a module the loaders, the optimizer and the schedulers that a configuration names.

    What the configuration leaves out is the module's own: its `train_dataloader`, its `configure_optimizers`.

    Args:
        module: Of a user's own class.
        config: A loaded configuration.

    Returns:
        The module.
    """
    source = _FromConfiguration(module, config)
    taken = ["test_loader", "collect_stats"]
    taken += ["configure_optimizers"] if config.get("optimizer") or config.get("optimizers") else []
    taken += ["train_dataloader", "val_dataloader"] if config.get("dataloader") else []
    for name in taken:
        setattr(module, name, getattr(source, name))
    return module
