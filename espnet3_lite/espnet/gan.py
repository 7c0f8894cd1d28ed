"""ESPnet2's contract for adversarial models: two turns a batch, the discriminator's and the generator's.

Such a model (`AbsGANESPnetModel`: codecs, GAN-TTS, singing) is called once for each turn and says which optimizer its
loss trains. The order of the turns and what is left out stand in ``trainer.gan``; that a turn's step comes before the
next one's forward pass is the training loop's work (`LiteModule.training_turns`). A model that returns several losses
from one forward pass needs none of this: that is `module.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from espnet3_lite.espnet.module import ESPnetModule
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.optim.slots import OptimizationStep

#: The optimizers' names, in the order of ESPnet2's `optim_idx`.
OPTIMIZERS = ("generator", "discriminator")


class ESPnetGANModule(ESPnetModule):
    """Wraps a model that is called as ``model(forward_generator=True or False, **batch)``.

    It returns a dict with `loss`, ``()``; `stats`, a dict of values to log; `weight`, of this batch in means; and
    `optim_idx`: 0 where the loss trains the generator, 1 for the discriminator, as a number or a tensor that holds it.

    Args:
        model: The model. `clear_cache()`, where it has one, is called after each batch: the generator's outputs may be
            kept between the turns.
        config: As for `ESPnetModule`, with `optimizers` named ``generator`` and ``discriminator``, and ``trainer.gan``:
            `generator_first` (false), `skip_discriminator_prob` (0.0: how often training leaves the discriminator's
            turn out, the same on all ranks), `no_forward_run` (false: load the batches and nothing else).

    Raises:
        MisconfigurationException: from a step, where the model returns something else.
    """

    def __init__(self, model: torch.nn.Module, config: Mapping[str, Any]):
        super().__init__(model, config)
        settings = self.config.trainer.get("gan") or {}
        self.generator_first = bool(settings.get("generator_first"))
        self.skip_discriminator_prob = float(settings.get("skip_discriminator_prob") or 0.0)
        self.no_forward_run = bool(settings.get("no_forward_run"))

    def on_train_start(self) -> None:
        """With `no_forward_run`, nothing is trained."""
        self.trainer.fit_loop.forward_only = self.no_forward_run

    def training_turns(self) -> Sequence[str]:
        """Both, in their order; the discriminator's is left out with its probability."""
        if self.no_forward_run:
            return OPTIMIZERS[:1]
        turns = OPTIMIZERS if self.generator_first else OPTIMIZERS[::-1]
        if self.skip_discriminator_prob > 0.0 and self._draw() < self.skip_discriminator_prob:
            return OPTIMIZERS[:1]
        return turns

    def _draw(self) -> float:
        """A number from 0 to 1 that depends on the seed and the batches so far: the same on all ranks, and resumed."""
        seed, batches = int(self.config.get("seed") or 0), self.trainer.fit_loop.batches_seen
        generator = torch.Generator().manual_seed((seed << 32) + batches)
        return torch.rand((), generator=generator).item()

    def training_step(self, batch: tuple[list[str], dict[str, Any]], batch_idx: int) -> Any:
        """The loss of the turn in work, for its optimizer."""
        if self.no_forward_run:
            return None
        step, stats, weight = self._take_turn(batch, self.turn)
        # As in `ESPnetModule.training_step`: by torch's own way of setting attributes it takes ten times as long.
        vars(self)["batch_weight"] = weight if weight is not None else self.trainer.metrics.batch_size
        self._log_stats("train", step, stats, weight)
        return step

    def validation_step(self, batch: tuple[list[str], dict[str, Any]], batch_idx: int) -> list[OptimizationStep] | None:
        """Both turns' values of one validation batch."""
        if self.no_forward_run:
            return None
        steps = []
        for turn in OPTIMIZERS if self.generator_first else OPTIMIZERS[::-1]:
            step, stats, vars(self)["batch_weight"] = self._take_turn(batch, turn)
            self._log_stats("valid", step, stats, self.batch_weight)
            steps.append(step)
        self._clear_cache()
        return steps

    test_step = validation_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """What was kept between the turns is not the next batch's."""
        self._clear_cache()

    def _clear_cache(self) -> None:
        clear, codec = getattr(self.model, "clear_cache", None), getattr(self.model, "codec", None)
        if callable(clear):
            clear()
        elif codec is not None and hasattr(codec, "_cache"):
            codec._cache = None  # where espnet's own trainer clears it

    def _take_turn(self, batch: Any, turn: str) -> tuple[OptimizationStep, Mapping[str, Any], Any]:
        self._check_batch(batch)
        result = self.model(forward_generator=turn == OPTIMIZERS[0], **batch[1])
        name = type(self.model).__name__
        missing = {"loss", "stats", "weight", "optim_idx"} - set(result if isinstance(result, Mapping) else ())
        if missing or not isinstance(result["stats"], Mapping):
            given = f"a dict with the keys {list(result)}" if isinstance(result, Mapping) else type(result).__name__
            raise MisconfigurationException(
                f"{name}.forward(forward_generator=..., **batch) must return a dict with loss, stats (a dict of values "
                f"to log), weight and optim_idx, as ESPnet2's adversarial models do; got {given}. Without trainer.gan "
                f"a model returns (losses, stats, weight)"
            )
        step = OptimizationStep(result["loss"], OPTIMIZERS[self._optimizer_index(result["optim_idx"])])
        return step, result["stats"], self._one_number(result["weight"])

    def _optimizer_index(self, given: Any) -> int:
        """`optim_idx` as a number: a tensor of several (one for each device) holds the same one in all places."""
        numbers = given.reshape(-1).tolist() if isinstance(given, torch.Tensor) else [given]
        if not numbers or numbers[0] not in (0, 1) or any(number != numbers[0] for number in numbers):
            raise MisconfigurationException(
                f"{type(self.model).__name__}.forward: optim_idx must be 0 (generator) or 1 (discriminator), as a "
                f"number or a tensor that holds it, got {given!r}"
            )
        return int(numbers[0])


def module_of(model: torch.nn.Module, config: Mapping[str, Any]) -> ESPnetModule:
    """The module for a model: with ``trainer.gan`` in its configuration, one that takes two turns a batch."""
    gan = (config.get("trainer") or {}).get("gan")
    return ESPnetModule(model, config) if gan is None else ESPnetGANModule(model, config)
