"""Ten data pipelines as public code writes them: each is trained, validated, and resumed in mid-epoch to the same bits.

The packages themselves are not needed: each class here behaves as theirs do where a trainer meets them.
"""

import dataclasses
import random
from collections import UserDict

import numpy as np
import pytest
import torch
from loader_lab import check_resumed
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, WeightedRandomSampler

from espnet3_lite import LiteModule
from espnet3_lite.loaders.transfer import tensors_in


def numbers(count, width=3, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


# ---- 1. torchvision's style: files on disk, a transform that draws ------------------------------------------------


class Images(Dataset):
    """As `torchvision.datasets.VisionDataset`: an item is ``transform(image), target``."""

    def __init__(self, transform=None):
        self.images, self.transform = numbers(14, 12).reshape(14, 3, 2, 2), transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), index % 2


class Compose:
    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


def flip(image):  # torchvision draws from torch
    return image.flip(-1) if torch.rand(1) < 0.5 else image


def brighten(image):  # albumentations and others from `random` and numpy
    return image * random.uniform(0.9, 1.1) + float(np.random.normal(0, 0.1))


def torchvision_style(**workers):
    return DataLoader(Images(Compose(flip, brighten)), 4, shuffle=True, drop_last=True, **workers)


# ---- 2. Hugging Face's style: dictionaries, batches fetched at once, a collator that pads to a dict-like ----------


class Features(UserDict):
    """As `BatchEncoding`: a dict-like with `to`."""

    def to(self, device):
        return Features({key: value.to(device) for key, value in self.items()})


class Table(Dataset):
    """As `datasets.Dataset`: rows are dicts; a batch of rows is fetched at once, and transformed at once."""

    def __len__(self):
        return 14

    def __getitem__(self, index):
        return {"input_ids": list(range(index, index + 1 + index % 3)), "label": index % 2}

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Masking:
    """As `DataCollatorForLanguageModeling`: pads, and masks at random."""

    def __call__(self, features):
        longest = max(len(feature["input_ids"]) for feature in features)
        ids = torch.tensor([f["input_ids"] + [0] * (longest - len(f["input_ids"])) for f in features])
        mask = torch.bernoulli(torch.full(ids.shape, 0.3)).bool()
        return Features(input_ids=ids.masked_fill(mask, 99), labels=torch.tensor([f["label"] for f in features]))


def hugging_face_style(**workers):
    return DataLoader(Table(), 4, shuffle=True, collate_fn=Masking(), **workers)


# ---- 3. WebDataset's style: shards, a shuffle buffer with a generator of its own, batches from the stream ---------


class Shards(IterableDataset):
    """Shards are dealt to workers, shuffled by epoch, and their samples pass a buffer."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        shards = list(range(6))
        generator = random.Random(self.epoch)
        generator.shuffle(shards)
        shards = shards if info is None else shards[info.id :: info.num_workers]
        buffer = []
        for shard in shards:
            for sample in numbers(4, seed=shard):
                buffer.append(sample)
                if len(buffer) > 5:
                    yield buffer.pop(generator.randrange(len(buffer)))
        yield from buffer


def web_dataset_style(**workers):
    return DataLoader(Shards(), 4, **workers)


# ---- 4. Lhotse's style: the sampler makes batches of cuts by duration, has a state, and no length -----------------


class Cuts(Dataset):
    """As `K2SpeechRecognitionDataset`: asked for a whole batch of cuts; draws augmentation."""

    def __getitem__(self, cuts):
        return {"features": numbers(20)[cuts] * random.uniform(0.8, 1.2), "cuts": [f"cut-{cut}" for cut in cuts]}


class Bucketing(Sampler):
    """As `DynamicBucketingSampler`: shuffles by seed and epoch, counts what it gave."""

    def __init__(self):
        self.epoch = self.given = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state):
        self.epoch, self.given = state["epoch"], state["given"]

    def __iter__(self):
        cuts, generator = list(range(20)), random.Random(self.epoch)
        generator.shuffle(cuts)
        while cuts:
            size = generator.choice((2, 3, 4))
            self.given += 1
            yield cuts[:size]
            del cuts[:size]


def lhotse_style(**workers):
    return DataLoader(Cuts(), batch_size=None, sampler=Bucketing(), **workers)


# ---- 5 to 10 ------------------------------------------------------------------------------------------------------


def list_of_batches():
    return [(numbers(3, seed=seed), torch.tensor(seed)) for seed in range(6)]


class Generators:
    """A function of batches, begun anew each epoch."""

    def __iter__(self):
        return ((numbers(2, seed=seed) + torch.rand(2, 1), ["a", "b"]) for seed in range(6))


class Sequences(Dataset):
    def __len__(self):
        return 14

    def __getitem__(self, index):
        return numbers(1 + index % 4, seed=index) + float(np.random.rand())


def pack(samples):
    return pack_sequence(samples, enforce_sorted=False)


def packed_sequences(**workers):
    return DataLoader(Sequences(), 4, shuffle=True, collate_fn=pack, **workers)


@dataclasses.dataclass(frozen=True)
class Utterances:
    speech: torch.Tensor
    lengths: torch.Tensor
    uids: list[str]


def to_utterances(samples):
    longest = max(map(len, samples))
    speech = torch.stack([torch.nn.functional.pad(s, (0, 0, 0, longest - len(s))) for s in samples])
    return Utterances(speech, torch.tensor([len(s) for s in samples]), [str(len(s)) for s in samples])


def dataclass_batches(**workers):
    return DataLoader(Sequences(), 4, shuffle=True, collate_fn=to_utterances, **workers)


def two_corpora(**workers):
    """A small and a large one, drawn from with equal weight, with replacement."""
    corpora = ConcatDataset([Images(brighten), torch.utils.data.Subset(Images(flip), range(6))])
    weights = [1 / 14] * 14 + [1 / 6] * 6
    return DataLoader(corpora, 4, sampler=WeightedRandomSampler(weights, 24), **workers)


class Nested(Sequences):
    def __getitem__(self, index):
        noise = torch.rand(2)
        return {"audio": {"left": numbers(1, seed=index)[0], "noise": noise}, "meta": [{"index": index}, "text"]}


def nested_dicts(**workers):
    return DataLoader(Nested(), 4, shuffle=True, **workers)


WITH_WORKERS = (
    torchvision_style, hugging_face_style, web_dataset_style, lhotse_style, packed_sequences, dataclass_batches,
    two_corpora, nested_dicts,
)  # fmt: skip


class Model(LiteModule):
    """Learns from whatever numbers are in a batch, with dropout; keeps what it was trained on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def loss(self, batch):
        if isinstance(batch, torch.nn.utils.rnn.PackedSequence):
            batch = pad_packed_sequence(batch, batch_first=True)[0]
        values = torch.cat([tensor.flatten().float() for tensor in tensors_in(batch)])
        return self.layer(torch.nn.functional.dropout(values[:, None], 0.3, self.training)).square().mean()

    def training_step(self, batch, batch_idx):
        numbers = [tensor.tolist() for tensor in tensors_in(batch)]
        self.seen.append((self.current_epoch, batch_idx, numbers))
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def check(make, folder, points):
    whole = check_resumed(Model, make, folder, points, val=make, val_check_interval=2, num_sanity_val_steps=1)
    assert len({str(numbers) for _, _, numbers in whole.seen}) >= 6  # it is no constant
    assert whole.trainer.callback_metrics["valid/loss"].isfinite()


@pytest.mark.parametrize("make", [*WITH_WORKERS, list_of_batches, Generators])
def test_in_the_main_process(make, tmp_path):
    check(make, tmp_path, [(0, 0), (0, 1), (1, 0), (1, 2)])


@pytest.mark.parametrize("make", WITH_WORKERS)
@pytest.mark.slow
def test_in_two_workers(make, tmp_path):
    check(lambda: make(num_workers=2), tmp_path, [(1, 0)])
