"""ESPnet3's contract on top of the trainer: ``loss, stats, weight = model(**batch)``, and its ``training.yaml``.

`ESPnetModule` translates what such a model returns. The trainer with ESPnet3's default callbacks is in `trainer.py`;
building both from a file is `experiment.py`'s.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from espnet3_lite.checks.signatures import metric_of_step
from espnet3_lite.config import Config
from espnet3_lite.config.rules import selects
from espnet3_lite.config.schema import check_config
from espnet3_lite.config.targets import instantiate
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.espnet.data.collate import CommonCollateFn
from espnet3_lite.espnet.data.collect_stats import collect_stats
from espnet3_lite.espnet.data.dataset import CombinedDataset
from espnet3_lite.espnet.data.loader import DataLoaderBuilder
from espnet3_lite.espnet.data.organizer import data_sets
from espnet3_lite.espnet.optimizer_counters import RUNTIME_STATE, dump_counters, restore_counters
from espnet3_lite.espnet.parameters import freeze_parameters
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.metrics.logged_value import LogArguments
from espnet3_lite.module.lite_module import LiteModule
from espnet3_lite.optim.slots import named_steps

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

logger = logging.getLogger(__name__)

#: What `Metrics.log` gets for `self.log(name, value, prog_bar=True)`.
_GIVEN = LogArguments(
    prog_bar=True, logger=True, on_step=None, on_epoch=None, reduce_fx="mean", enable_graph=False, sync_dist=False,
    add_dataloader_idx=True, rank_zero_only=False,
)  # fmt: skip


class ESPnetModule(LiteModule):
    """Wraps an ESPnet model and its configuration.

    Args:
        model: Called as ``model(**batch)`` with the dict of a batch ``(uids, dict)``; returns ``(loss, stats,
            weight)``: the loss, ``()``, or with named `optimizers` an `OptimizationStep` or a list of them; a dict of
            values to log (None is left out); the weight of this batch in means (None: its size).
        config: A dict or a loaded config with `optimizer` (and `scheduler`, `scheduler_interval`, `scheduler_monitor`)
            or `optimizers` (and `schedulers`), `dataset`, `dataloader`, and, for statistics, `stats_dir`. With
            `accumulate_by_weight` several batches that make one step count by their weights, as ranks always do; by
            default each counts the same, also in a last window of fewer batches, which is divided by the full number.

    Raises:
        MisconfigurationException: from `configure_optimizers`, with every mistake in the configuration.

    Example:
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(2, 1)
        ...     def forward(self, x):
        ...         loss = self.layer(x).square().mean()
        ...         return loss, {"loss": loss.detach()}, torch.tensor(len(x))
        >>> module = ESPnetModule(Model(), {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1}})
        >>> list(module.state_dict())
        ['layer.weight', 'layer.bias']
    """

    #: Our checkpoints hold the model's own state dict: nothing to strip.
    wrapper_prefix = ""
    #: Batches are ``(uids, dict)``: a plain torch data set is given ids, its samples' numbers.
    contract = True

    def __init__(self, model: torch.nn.Module, config: Mapping[str, Any]):
        super().__init__()
        self.model = model
        self.config = config if isinstance(config, Config) else Config.create(config)
        #: This batch's weight in means; the loop hands it to the vote.
        self.batch_weight: Any = None
        #: A window's gradient is that of one large batch: each loss times its weight, divided by the weights' sum.
        self.accumulate_by_weight = bool(self.config.get("accumulate_by_weight"))
        self.named_optimizers: dict[str, dict[str, Any]] = {}
        self._has_named_optimizers = bool(self.config.get("optimizers"))
        self._freeze_parameters()
        organizer = data_sets(self.config)
        self.train_dataset = self._in_contract(getattr(organizer, "train", None))
        self.valid_dataset = self._in_contract(getattr(organizer, "valid", None))
        if hasattr(organizer, "log_summary"):
            organizer.log_summary(logger)
        if not self.config.get("dataloader"):  # then the loaders are passed to fit()
            # None hides a method, as if the class had none.
            self.train_dataloader = self.val_dataloader = None  # type: ignore[assignment, method-assign]
        own = type(self).on_before_optimizer_step is not ESPnetModule.on_before_optimizer_step
        if not self._has_named_optimizers and not own:
            # Only named optimizers log their updates.
            self.on_before_optimizer_step = None  # type: ignore[assignment, method-assign]

    def _freeze_parameters(self) -> None:
        """Do not train what ``freeze_param`` names, in ``model`` or, as ESPnet2 has it, at the top.

        A name is a parameter's, or a dotted beginning of some.
        """
        places = {"model.freeze_param": self.config.get("model") or {}, "freeze_param": self.config}
        for place, block in places.items():
            freeze_parameters(self.model, block.get("freeze_param") or (), place)

    # ---- steps -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[list[str], dict], batch_idx: int) -> Any:
        """Return what the loop routes to the optimizers: a loss, or named steps."""
        loss, stats, weight = self._forward(batch)
        # 0.1 us; `self.batch_weight =`, in which torch looks for parameters and buffers, takes 1.3.
        vars(self)["batch_weight"] = weight if weight is not None else self.trainer.metrics.batch_size
        self._log_stats("train", loss, stats, weight)
        return loss

    def compiled_step(self, step: Callable[[Any, int], Any], **arguments: Any) -> Callable[[Any, int], Any]:
        """Compile the model, in place and without a prefix in its state dict: the step around it is plain Python."""
        self.model.compile(**arguments)
        return step

    def validation_step(self, batch: tuple[list[str], dict], batch_idx: int) -> Any:
        """Log the values of one validation batch."""
        loss, stats, weight = self._forward(batch)
        vars(self)["batch_weight"] = weight
        self._log_stats("valid", loss, stats, weight)
        return loss

    test_step = validation_step

    @staticmethod
    def _check_batch(batch: Any) -> None:
        # `dict` comes first: to ask an abstract class takes ten times as long.
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], (dict, Mapping))):
            keys = f" with keys {list(batch)}" if isinstance(batch, Mapping) else ""
            length = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise MisconfigurationException(
                f"a batch must be (uids, {{name: tensor}}), got {type(batch).__name__}{keys}{length}; is "
                f"dataloader.collate_fn set?"
            )

    def _check_arguments(self, batch: Mapping[str, Any]) -> None:
        """A model's call failed: by its arguments, which are the keys of the samples?"""
        written = inspect.signature(self.model.forward)
        try:
            written.bind(**batch)
        except TypeError as error:
            raise MisconfigurationException(
                f"{type(self.model).__name__}.forward{written} does not fit the batch, whose keys are {list(batch)}: "
                f"{error}. The keys of the samples, and <key>_lengths of each, become its arguments; rename them in "
                f"the data set, or let it take **kwargs for those that it does not use"
            ) from None

    def _forward(self, batch: tuple[list[str], dict]) -> tuple[Any, Mapping[str, Any], Any]:
        if type(batch) is not tuple or len(batch) != 2 or type(batch[1]) is not dict:  # as nearly always it is
            self._check_batch(batch)
        model = self._modules["model"]  # `self.model`, which torch looks for in Python, takes ten times as long
        assert model is not None
        try:
            result = model(**batch[1])
        except TypeError:
            self._check_arguments(batch[1])
            raise
        if not isinstance(result, tuple) or len(result) != 3:
            raise MisconfigurationException(
                f"{type(self.model).__name__}.forward must return (loss, stats, weight), got {type(result).__name__}"
                + (f" of length {len(result)}" if isinstance(result, (tuple, list)) else "")
                + ("; for ESPnet2's adversarial models set trainer.gan: {}" if isinstance(result, Mapping) else "")
            )
        loss, stats, weight = result
        if not isinstance(stats, (dict, Mapping)):
            raise MisconfigurationException(
                f"{type(self.model).__name__}.forward: stats must be a dict of values to log, got "
                f"{type(stats).__name__}"
            )
        return loss, stats, self._one_number(weight)

    def _one_number(self, weight: Any) -> Any:
        """A batch's weight as a number, or a tensor ``()`` that is not on the CPU; None stays.

        Whether it is finite is the vote's to see.
        """
        if isinstance(weight, torch.Tensor) and weight.numel() == 1:
            return weight.item() if weight.is_cpu else weight.detach().reshape(())
        if isinstance(weight, (np.ndarray, np.generic)) and weight.size == 1:
            return weight.item()
        if weight is None or isinstance(weight, (int, float)):
            return weight
        raise MisconfigurationException(
            f"{type(self.model).__name__}.forward: the weight must be a number, a tensor with one element or None, got "
            f"{weight!r}"
        )

    def _log_stats(self, mode: str, loss: Any, stats: Mapping[str, Any], weight: Any) -> None:
        if self._has_named_optimizers:
            stats = dict(stats)
            for step in named_steps(loss) or ():
                if isinstance(step.loss, torch.Tensor):
                    stats[f"{step.name}/loss"] = step.loss
        trainer, log = self._trainer, self.log
        plain = getattr(log, "__func__", None) is LiteModule.log  # neither overridden nor replaced
        for key, value in stats.items():
            if value is not None:
                value = torch.as_tensor(value) if isinstance(value, np.ndarray) else value
                if plain and trainer is not None:  # the same, without a call and what it puts together in each step
                    trainer.metrics.log(f"{mode}/{key}", value, _GIVEN, weight)
                else:
                    log(f"{mode}/{key}", value, prog_bar=True, batch_size=weight)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log a named optimizer's update; taken back with the batch if its gradient is not finite."""
        trainer = self.trainer
        trainer.metrics.hook = "training_step"
        for slot in trainer.plan.slots.values():
            if slot.optimizer is optimizer:  # a count has no mean
                self.log(f"train/{slot.name}/update_step", float(slot.update_step + 1), reduce_fx="max")

    # ---- optimizers ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """One optimizer with its scheduler, or several by name; after the whole configuration was checked."""
        check_config(self.config, module=self)
        if self._has_named_optimizers:
            return self._configure_named()
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = instantiate(self.config.optimizer, trained)
        if not self.config.get("scheduler"):
            return optimizer
        settings = {
            "interval": self.config.get("scheduler_interval") or "step",
            "monitor": self.config.get("scheduler_monitor"),
        }
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(self.config.scheduler, optimizer, settings)}

    def _configure_named(self) -> tuple[list, list]:
        refuse_settings_of_one_optimizer(self._trainer)
        optimizers: dict[str, torch.optim.Optimizer] = {}
        self.named_optimizers = {}
        named = list(self.named_parameters(remove_duplicate=False))  # a shared parameter has several names
        for name, block in self.config.optimizers.items():
            chosen = [p for n, p in named if p.requires_grad and selects(block.params, n)]
            optimizers[name] = instantiate(block.optimizer, list(dict.fromkeys(chosen)))
            counts = (block.get("accum_grad_steps") or 1, block.get("step_every_n_iters") or 1)
            self.named_optimizers[name] = {
                "window": max(counts),
                "gradient_clip_val": block.get("gradient_clip_val"),
                "gradient_clip_algorithm": block.get("gradient_clip_algorithm") or "norm",
            }
        schedulers = [
            self._scheduler(
                block.scheduler,
                optimizers[name],
                {"interval": block.get("interval") or "epoch", "monitor": block.get("monitor"), "name": f"lr-{name}"},
            )
            for name, block in (self.config.get("schedulers") or {}).items()
        ]
        return list(optimizers.values()), schedulers

    @staticmethod
    def _scheduler(config: Any, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> dict[str, Any]:
        scheduler = instantiate(config, optimizer=optimizer)
        if settings["monitor"] is not None and metric_of_step(scheduler) is None:
            raise MisconfigurationException(
                f"{type(scheduler).__name__}.step takes no metric, but monitor={settings['monitor']!r} is set; "
                f"remove it"
            )
        return {"scheduler": scheduler, **settings}

    # ---- data ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Any:
        """The loader of the configuration's ``dataloader.train``.

        Raises:
            MisconfigurationException: there is nothing to train on.
        """
        if hasattr(self.train_dataset, "__len__") and not len(self.train_dataset):
            raise MisconfigurationException("dataset.train holds no samples: there is nothing to train on")
        return self._loader(self.train_dataset, "train")

    def val_dataloader(self) -> Any:
        """The loader of ``dataloader.valid``."""
        if hasattr(self.valid_dataset, "__len__") and not len(self.valid_dataset):
            rank_zero_warn(
                "dataset.valid holds no samples: nothing is validated, and no best checkpoints are kept or averaged"
            )
        return self._loader(self.valid_dataset, "valid")

    def _in_contract(self, dataset: Any) -> Any:
        """A data set whose samples have ids; one of a user's own that cannot be indexed stays as it is."""
        plain = self.contract and isinstance(dataset, Dataset) and not isinstance(dataset, IterableDataset)
        if plain and not hasattr(dataset, "use_espnet_collator"):
            return CombinedDataset([dataset], [(None, None)])
        return dataset

    def _loader(self, dataset: Any, mode: str) -> Any:
        if dataset is None:
            without = "; to train without validation, set trainer.limit_val_batches: 0" if mode == "valid" else ""
            raise MisconfigurationException(
                f"dataset: the configuration has `dataloader` but `dataset` gives no {mode!r} data; name it in "
                f"dataset.{mode}{without}"
            )
        builder = DataLoaderBuilder(
            dataset=dataset, config=self.config, collate_fn=self._collate_fn(), epoch=self.current_epoch
        )
        return builder.build(mode=mode)

    def test_loader(self, dataset: Any) -> Any:
        """A loader over a test set, `dataset`, made as the validation loader is; samples without an id get their index.

        Where the validation loader's batches come from shape files, which do not list test sets, a batch has the same
        number of utterances, in the data set's order.
        """
        dataset = self._in_contract(dataset)
        valid = (self.config.get("dataloader") or {}).get("valid")
        if not valid:
            raise MisconfigurationException("dataloader.valid is missing: test sets are loaded as it says")
        factory = valid.get("iter_factory")
        if factory is None:
            return self._loader(dataset, "valid")
        plain = {"batch_size": (factory.get("batches") or {}).get("batch_size") or 1, "shuffle": False}
        builder = DataLoaderBuilder(dataset, {"dataloader": {"valid": plain}}, collate_fn=self._collate_fn())
        return builder.build("valid")

    def _collate_fn(self) -> Any:
        """``dataloader.collate_fn``, or ESPnet's padding."""
        config = self.config.get("dataloader") or {}
        return instantiate(config["collate_fn"]) if config.get("collate_fn") else CommonCollateFn(int_pad_value=-1)

    def collect_stats(self) -> None:
        """Write the shapes and statistics of the training and validation data below ``stats_dir``.

        Raises:
            MisconfigurationException: `stats_dir` is missing.
        """
        config = self.config
        collect_stats(
            self.model,
            data_sets(config),
            config.get("stats_dir"),
            collate_fn=self._collate_fn(),
            batch_size=config.get("collect_stats_batch_size"),
            train_mode=config.get("collect_stats_train_mode"),
            parallel=config.get("parallel"),
            seed=config.get("seed"),
        )

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """The model's own state dict, without a prefix."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave into the model; `strict` and `assign` as in `torch.nn.Module.load_state_dict`."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the named optimizers' counters where ESPnet3 looks for them."""
        if self.named_optimizers and self._trainer is not None:
            checkpoint[RUNTIME_STATE] = dump_counters(self.trainer)

    def restore_named_optimizers(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the named optimizers' counters in `checkpoint`, as ESPnet3 saved them."""
        restore_counters(self.trainer, checkpoint)


def refuse_settings_of_one_optimizer(trainer: Trainer | None) -> None:
    """With several optimizers each has its own clipping and accumulation; `trainer` is who runs the module, if any.

    Raises:
        MisconfigurationException: the trainer has settings for one optimizer.
    """
    for setting, harmless, own in (
        ("gradient_clip_val", None, "gradient_clip_val"),
        ("gradient_clip_algorithm", None, "gradient_clip_algorithm"),
        ("accumulate_grad_batches", 1, "accum_grad_steps"),
    ):
        value = harmless if trainer is None else getattr(trainer, setting)
        if value != harmless:
            raise MisconfigurationException(
                f"trainer.{setting}={value!r}: with several optimizers set `{own}` in each of `optimizers`"
            )
