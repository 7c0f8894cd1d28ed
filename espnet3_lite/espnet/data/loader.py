"""A config's `dataloader` block: the loader of one split, for the whole run.

Two ways, as in ESPnet3: torch's own `DataLoader`, or, where the block has an `iter_factory`, ESPnet's batch
samplers and its order of an epoch (`samplers.py`, `iterators.py`). Which rank takes which batch is the
training loop's business.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader, default_collate

from espnet3_lite.checks.value_kinds import plain_containers
from espnet3_lite.config.targets import find_target, instantiate
from espnet3_lite.distributed.rank import global_rank, world_size
from espnet3_lite.espnet.data.collate import takes_ids
from espnet3_lite.espnet.data.dataset import CombinedDataset, EpochShards
from espnet3_lite.espnet.data.iterators import FactoryLoader, SequenceIterFactory
from espnet3_lite.espnet.data.samplers import build_batch_sampler
from espnet3_lite.espnet.data.worker_imports import ImportedInWorkers
from espnet3_lite.exceptions import MisconfigurationException, nearest
from espnet3_lite.loaders.samplers import EpochSampler

_DISTRIBUTIONS = ("per_gpu", "global")
# Keys of a loader's block that say something else than how torch's DataLoader is made.
_NOT_FOR_TORCH = (
    "iter_factory",
    "batch_distribution",
    "total_shards",
    "num_shards",
    "dist_world_size",
    "dataset",
    "collate_fn",
)


class DataLoaderBuilder:
    """Builds the loader that ``config.dataloader.<mode>`` describes.

    Args:
        dataset: what is loaded: a `CombinedDataset`, or any map-style data set. One that can give utterance
            ids (`use_espnet_collator`) does so from now on where the collate function is a `CommonCollateFn`.
        config: the whole config, or any mapping with a `dataloader` block.
        collate_fn: makes a batch of samples; None for torch's own.
        num_device: ESPnet3's argument; not used, since the training loop deals batches out to the ranks.
        epoch: the epoch, counted from 0, that the loader begins with. Default 0.

    >>> config = {"dataloader": {"train": {"batch_size": 2, "shuffle": False}}}
    >>> loader = DataLoaderBuilder([1, 2, 3], config).build("train")
    >>> [batch.tolist() for batch in loader]
    [[1, 2], [3]]
    """

    def __init__(
        self,
        dataset: Any,
        config: Mapping[str, Any],
        collate_fn: Callable | None = None,
        num_device: int = 1,
        epoch: int = 0,
    ):
        self.dataset = dataset
        self.config = config
        self.collate_fn = collate_fn
        self.num_device = num_device
        self.epoch = epoch

    def build(self, mode: str) -> DataLoader | FactoryLoader:
        """Build the loader of `mode`, which is ``train`` or ``valid``.

        Returns:
            Without `iter_factory`, a plain `DataLoader`. With ESPnet's sequence iterator, a `DataLoader`
            whose `batch_sampler` is an `EpochBatchSampler`: before each epoch, call its ``set_epoch``; its
            `batch_distribution` says how ranks share a batch. With any other factory, a `FactoryLoader`, on
            each rank with that rank's batches. Where the data set is sharded, ``loader.dataset.set_epoch``
            must be called too.

        Raises:
            MisconfigurationException: the block is missing, contradicts itself, or has an unknown key.
        """
        block = self._block(mode)
        where = f"dataloader.{mode}"
        distribution = block.get("batch_distribution") or "per_gpu"
        if distribution not in _DISTRIBUTIONS:
            raise MisconfigurationException(
                f"{where}.batch_distribution must be 'per_gpu' or 'global', got {distribution!r}"
                f"{nearest(distribution, _DISTRIBUTIONS)}"
            )
        if "multiple_iterator" in block:
            raise MisconfigurationException(
                f"{where}.multiple_iterator is not supported, as in ESPnet3: give a sharded data set "
                "(total_shards, dist_world_size), or point the data set and the shape files to one split"
            )
        if "num_iters_per_epoch" in block:
            raise MisconfigurationException(
                f"{where}.num_iters_per_epoch: belongs under iter_factory: {where}.iter_factory.num_iters_per_epoch"
            )
        factory = block.get("iter_factory")
        if factory is None and distribution == "global":
            raise MisconfigurationException(
                f"{where}.batch_distribution: global needs an iter_factory, whose batches all ranks know; "
                "a plain DataLoader has per_gpu only"
            )
        if factory is None:
            return self._plain_loader(block, where)
        return self._factory_loader(block, distribution, f"{where}.iter_factory")

    def _first_collate_fn(self, *configs: Any) -> Callable | None:
        """The first collate function that is configured, else the builder's."""
        own = next((config for config in configs if config is not None), None)
        return self.collate_fn if own is None else instantiate(own)

    def _prepared_dataset(self, collate_fn: Callable | None) -> Any:
        """The data set, giving ids where the collate function wants them, reduced to the epoch's shards."""
        if takes_ids(collate_fn) and hasattr(self.dataset, "use_espnet_collator"):
            self.dataset.use_espnet_collator = True
        sharded = getattr(self.dataset, "total_shards", None) is not None
        return EpochShards(self.dataset, self.epoch) if sharded else self.dataset

    def _block(self, mode: str) -> dict[str, Any]:
        dataloader = self.config.get("dataloader")
        if not isinstance(dataloader, Mapping):
            raise MisconfigurationException(
                f"the config needs a `dataloader` block with `train` and `valid`, got {dataloader!r}"
            )
        if not isinstance(dataloader.get(mode), Mapping):
            raise MisconfigurationException(
                f"the config has no dataloader.{mode}; it has dataloader.{{{', '.join(dataloader)}}}"
                f"{nearest(mode, dataloader)}"
            )
        return plain_containers(dataloader[mode])

    def _plain_loader(self, block: dict[str, Any], where: str) -> DataLoader:
        collate_fn = self._first_collate_fn(block.get("collate_fn"))
        dataset = self._prepared_dataset(collate_fn)
        samplers = {
            name: instantiate(self.config[name], dataset)
            for name in ("sampler", "batch_sampler")
            if self.config.get(name) is not None
        }
        if len(samplers) == 2:
            raise MisconfigurationException("the config has both `sampler` and `batch_sampler`; keep one of them")
        arguments = {key: value for key, value in block.items() if key not in _NOT_FOR_TORCH}
        _check_keys(where, arguments, DataLoader)
        if not samplers and arguments.pop("shuffle", False):
            # Not torch's own shuffling: a run may then go on in mid-epoch with another number of ranks.
            samplers["sampler"] = EpochSampler(dataset)
        if arguments.get("num_workers"):
            dataset = ImportedInWorkers(dataset)
        if collate_fn is None and arguments.get("batch_size", 1) is not None:
            collate_fn = _collate_equal_sizes
        return DataLoader(dataset, collate_fn=collate_fn, **samplers, **arguments)

    def _built_batches(self, factory: Mapping[str, Any], distribution: str, where: str) -> Any:
        """The batch sampler; with ``global``, after a check that every rank gets a part of every batch."""
        described = factory.get("batches")
        if distribution != "global":
            return _build_batches(described, f"{where}.batches")
        if factory.get("shuffle_within_batch"):
            raise MisconfigurationException(
                f"{where}.shuffle_within_batch: true does not go with batch_distribution: global, as in ESPnet3"
            )
        if getattr(self.dataset, "total_shards", None) not in (None, 1):
            raise MisconfigurationException(
                f"{where}: batch_distribution: global needs data that is not sharded, but the data set has "
                f"total_shards={self.dataset.total_shards}; use per_gpu"
            )
        if str(factory["_target_"]).endswith("CategoryIterFactory") and world_size() > 1:
            if not (factory.get("sampler_args") or {}).get("distributed"):
                raise MisconfigurationException(
                    f"{where}: CategoryIterFactory with batch_distribution: global needs sampler_args.distributed: "
                    f"true, or every process makes the same batches anew"
                )
        batches = _build_batches(described, f"{where}.batches", smallest=world_size())
        for index, batch in enumerate(batches):
            if len(batch) < world_size():
                raise MisconfigurationException(
                    f"{where}.batches: batch_distribution: global cannot split batch {index} of size {len(batch)} over "
                    f"world_size={world_size()}; every batch needs at least one utterance for each process: make "
                    f"batches larger, or use per_gpu"
                )
        return batches

    def _factory_loader(self, block: dict[str, Any], distribution: str, where: str) -> DataLoader | FactoryLoader:
        factory = block["iter_factory"]
        if not isinstance(factory, Mapping) or "_target_" not in factory:
            raise MisconfigurationException(
                f"{where} must be a mapping with a `_target_`, such as "
                f"espnet2.iterators.sequence_iter_factory.SequenceIterFactory; got {factory!r}"
            )
        if "MultipleIterFactory" in str(factory["_target_"]):
            raise MisconfigurationException(
                f"{where}: MultipleIterFactory is not supported, as in ESPnet3; use SequenceIterFactory "
                "and a sharded data set"
            )
        batches = self._built_batches(factory, distribution, where)
        collate_fn = self._first_collate_fn(factory.get("collate_fn"), block.get("collate_fn"))
        dataset = self._prepared_dataset(collate_fn)
        _check_utterances(batches, dataset, f"{where}.batches")
        target = find_target(factory["_target_"])
        ours = isinstance(target, type) and issubclass(target, SequenceIterFactory)
        if not ours:
            # Such a factory decides alone what becomes of the batches it is given: each rank gives it its share. A list
            # with one rank too: ESPnet's own accepts lists and its own sampler class, which ours is not.
            batches = _share(list(batches), distribution)
        arguments = {**factory, "collate_fn": collate_fn}
        del arguments["batches"]
        if not ours and isinstance(factory.get("sampler_args"), Mapping):
            # From the second epoch on ESPnet's CategoryIterFactory makes the batches anew, and shares them if told so.
            given = factory["sampler_args"]
            arguments["sampler_args"] = {"num_batches": None, **given, "distributed": world_size() > 1}
        if ours and arguments.get("num_workers"):
            dataset = ImportedInWorkers(dataset)
        built = instantiate(arguments, dataset, batches=batches)
        if not ours:
            built = FactoryLoader(built)
            built.set_epoch(self.epoch)
            return built
        loader = built.build_loader(distribution)
        loader.batch_sampler.set_epoch(self.epoch)
        return loader


def _collate_equal_sizes(samples: list) -> Any:
    """Torch's own way to make a batch; its error about samples of unequal size says what would do."""
    try:
        return default_collate(samples)
    except RuntimeError as error:
        if "equal size" not in str(error):
            raise
        raise RuntimeError(
            f"{error}. The samples differ in size, and dataloader.collate_fn is not set: write a function of a list of "
            f"samples that pads them into a batch, and name it by {{_target_: data.collate, _partial_: true}}"
        ) from error


def _share(batches: list, distribution: str) -> list:
    """This rank's part of the batches: some of them, or some utterances of each."""
    rank, ranks = global_rank(), world_size()
    return [batch[rank::ranks] for batch in batches] if distribution == "global" else batches[rank::ranks]


def _build_batches(config: Any, where: str, smallest: int = 1) -> Any:
    """The batch sampler that `batches` describes: arguments of `build_batch_sampler`, or a `_target_`."""
    if not isinstance(config, Mapping):
        raise MisconfigurationException(f"{where} must be a mapping with a `type` and shape_files, got {config!r}")
    if not config.get("_target_", "build_batch_sampler").endswith("build_batch_sampler"):
        return instantiate(config)
    settings = {key: value for key, value in config.items() if key != "_target_"}
    if "type" not in settings:
        raise MisconfigurationException(f"{where} has no `type`: unsorted, sorted, folded, length or numel")
    _check_keys(where, settings, build_batch_sampler)
    # As ESPnet3, but a larger one of the user's stays; samplers of constant sizes ignore it.
    settings["min_batch_size"] = max(smallest, settings.get("min_batch_size") or 1)
    return build_batch_sampler(**settings)


def _check_utterances(batches: Any, dataset: Any, where: str) -> None:
    """Find out now, not in the middle of an epoch, that the shape files are of other data."""
    if isinstance(dataset, CombinedDataset):
        for key in (key for batch in batches for key in batch):
            if not dataset.may_have(key):
                raise MisconfigurationException(
                    f"{where}: the shape files have an utterance {key!r}, the data set of {len(dataset)} samples "
                    "does not; run `espnet3-lite collect-stats` again after a change of the data"
                )


def _check_keys(where: str, settings: Mapping[str, Any], function: Callable) -> None:
    known = list(inspect.signature(function).parameters)
    for key in settings:
        if key not in known:
            raise MisconfigurationException(
                f"{where} has the unknown key {key!r}; known are {', '.join(known)}{nearest(key, known)}"
            )
