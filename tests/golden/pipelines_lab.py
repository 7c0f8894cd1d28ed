"""Public data packages under this trainer: `python pipelines_lab.py CASE FOLDER` prints what came of it as JSON.

Run in an environment that has torchvision, datasets, webdataset, lhotse and transformers; started by
`test_pipelines.py`. Each case is trained, validated in mid-epoch, and resumed within both epochs, in the main process
and with two workers where the package has workers.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from loader_lab import check_resumed

from espnet3_lite import LiteModule
from espnet3_lite.loaders.transfer import tensors_in


class Model(LiteModule):
    """Learns from whatever numbers are in a batch; keeps what it was trained on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def loss(self, batch):
        values = torch.cat([tensor.flatten().float() for tensor in tensors_in(batch)]).tanh()
        return torch.nn.functional.dropout(self.layer(values[:, None]), 0.3, self.training).square().mean()

    def training_step(self, batch, batch_idx):
        numbers = [round(float(tensor.double().sum()), 9) for tensor in tensors_in(batch)]
        self.seen.append((self.current_epoch, batch_idx, type(batch).__name__, numbers))
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def torchvision_images(folder):
    """`ImageFolder` with transforms that draw (version 2), which give tensors of a class of their own."""
    from PIL import Image
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    generator = np.random.default_rng(0)
    for index in range(14):
        path = folder / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(path)
    draws = [v2.ToImage(), v2.RandomCrop(4), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5), v2.RandomErasing()]
    images = ImageFolder(folder, v2.Compose([*draws, v2.ToDtype(torch.float32, scale=True)]))
    mix = v2.MixUp(num_classes=2)

    def collate(samples):
        return mix(torch.utils.data.default_collate(samples))

    return lambda **workers: DataLoader(images, 4, shuffle=True, drop_last=True, collate_fn=collate, **workers)


def datasets_table(folder):
    """A `Dataset` in torch's format, whose transform draws."""
    from datasets import Dataset

    table = Dataset.from_dict({"x": np.random.default_rng(0).normal(size=(14, 3)).tolist(), "label": [0, 1] * 7})

    def noisy(rows):
        return {"x": [torch.tensor(x) + torch.randn(3) for x in rows["x"]], "label": rows["label"]}

    table = table.shuffle(seed=1).with_transform(noisy)
    return lambda **workers: DataLoader(table, 4, shuffle=True, **workers)


def datasets_stream(folder):
    """An `IterableDataset` with shards and a shuffle buffer, which follows `set_epoch`."""
    from datasets import Dataset

    table = Dataset.from_dict({"x": np.random.default_rng(0).normal(size=(24, 3)).tolist()})

    def make(**workers):
        stream = table.to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=5).with_format("torch")
        return DataLoader(stream, 4, **workers)

    return make


def transformers_batches(folder):
    """A tokenizer's `BatchEncoding`, padded and masked by transformers' own collator."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    words = ["[PAD]", "[MASK]", "[UNK]", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]"
    )
    texts = [" ".join("abcdefgh"[: 2 + index % 6]) for index in range(14)]
    collate = DataCollatorForLanguageModeling(fast, mlm_probability=0.4)
    rows = [fast(text) for text in texts]
    return lambda **workers: DataLoader(rows, 4, shuffle=True, collate_fn=collate, **workers)


def webdataset_shards(folder):
    """Shards in tar files, their order and their samples shuffled by epoch; as OpenCLIP sets the epoch."""
    import webdataset as wds

    for shard in range(4):
        with wds.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for index in range(6):
                values = np.random.default_rng(shard * 6 + index).normal(size=3).astype(np.float32)
                tar.write({"__key__": f"{shard}-{index}", "x.npy": values, "cls": index % 2})
    urls = [str(folder / f"{shard}.tar") for shard in range(4)]

    class Epochs(wds.DataPipeline):
        def set_epoch(self, epoch):
            for stage in self.pipeline:
                if isinstance(stage, wds.detshuffle):
                    stage.epoch = epoch - 1  # it counts up when it is run

    def make(**workers):
        stream = Epochs(
            wds.SimpleShardList(urls), wds.detshuffle(), wds.split_by_worker, wds.tarfile_to_samples(),
            wds.detshuffle(8, 4), wds.decode(), wds.to_tuple("x.npy", "cls"), wds.batched(4),
        )  # fmt: skip
        return DataLoader(stream, batch_size=None, **workers)

    return make


def lhotse_cuts(folder):
    """Cuts in buckets, batches by duration; features are masked at random in the data set."""
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler, K2SpeechRecognitionDataset, SpecAugment
    from lhotse.testing.dummies import dummy_cut, dummy_in_memory_features, dummy_supervision

    def cut(index, seconds):
        return dummy_cut(
            index, duration=seconds, recording_duration=seconds, supervisions=[dummy_supervision(index)],
            features=dummy_in_memory_features(index, duration=seconds),
        )  # fmt: skip

    cuts = CutSet.from_cuts(cut(index, 1.0 + index % 4) for index in range(24))
    dataset = K2SpeechRecognitionDataset(input_transforms=[SpecAugment(p=0.5)])

    def make(**workers):
        sampler = DynamicBucketingSampler(cuts, max_duration=8.0, num_buckets=2, shuffle=True, seed=0)
        return DataLoader(dataset, batch_size=None, sampler=sampler, **workers)

    return make


def transformers_model(folder):
    """A model of transformers as it is: a step returns its `ModelOutput`."""
    from transformers import BertConfig, BertForMaskedLM

    make = transformers_batches(folder)

    class Bert(Model):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
            self.bert = BertForMaskedLM(BertConfig(vocab_size=11, max_position_embeddings=16, **shape))

        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            return self.bert(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")})

        def validation_step(self, batch, batch_idx):
            output = self.bert(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")})
            self.log("valid/loss", output.loss)
            return output

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    return make, Bert


def main(case, folder):
    made = globals()[case](folder)
    make, model = made if isinstance(made, tuple) else (made, Model)
    found = {}
    for name, workers in {"main": {}, "workers": {"num_workers": 2}}.items():
        files = folder / name
        files.mkdir()
        points = [(0, 0), (0, 1), (1, 0), (1, 2)] if name == "main" else [(1, 0)]
        whole = check_resumed(
            model, lambda workers=workers: make(**workers), files, points, val=make, val_check_interval=2,
            num_sanity_val_steps=1,
        )  # fmt: skip
        values = [str(numbers) for *_, numbers in whole.seen]
        found[name] = {
            "batches": len(values), "distinct": len(set(values)), "kind": whole.seen[0][2],
            "valid": float(whole.trainer.callback_metrics["valid/loss"]),
        }  # fmt: skip
    return found


if __name__ == "__main__":
    random.seed(0)
    print("RESULT " + json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
