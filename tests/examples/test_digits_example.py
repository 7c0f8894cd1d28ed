"""examples/digits: the split, the model, and that it learns. The command itself runs in a slow test."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from examples.digits.dataset import SIZES, Dataset
from examples.digits.model import DigitClassifier

#: Asked for without an import, which each worker would make when it collects.
pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="the digits are part of scikit-learn")


def test_the_splits_hold_each_image_once():
    parts = [Dataset(split) for split in SIZES]
    assert [len(part) for part in parts] == [1197, 300, 300]
    together = np.concatenate([part.images.reshape(-1, 64) for part in parts])
    from sklearn.datasets import load_digits

    original = load_digits().data / 16.0
    order, original_order = np.lexsort(together.T), np.lexsort(original.T)
    np.testing.assert_array_equal(together[order], original[original_order].astype(np.float32))


def test_items_are_arrays_with_an_axis_and_the_split_is_fixed():
    item = Dataset("train")[0]
    assert item["image"].shape == (8, 8) and item["image"].dtype == np.float32
    assert item["label"].shape == (1,) and item["label"].dtype == np.int64
    assert 0.0 <= Dataset("train").images.min() and Dataset("train").images.max() == 1.0
    np.testing.assert_array_equal(Dataset("valid").labels[:5, 0], Dataset("valid").labels[:5, 0])
    assert not np.array_equal(Dataset("valid", seed=1).labels, Dataset("valid").labels)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"one of \['train', 'valid', 'test'\], got 'eval'"):
        Dataset("eval")


def test_the_contract():
    torch.manual_seed(0)
    model = DigitClassifier(channels=4).eval()
    image, label = torch.rand(6, 8, 8), torch.arange(6).unsqueeze(1)
    loss, stats, weight = model(image=image, label=label)
    logits = model.logits(image)
    assert logits.shape == (6, 10)
    torch.testing.assert_close(loss, -logits.log_softmax(1)[torch.arange(6), torch.arange(6)].mean())
    assert not stats["loss"].requires_grad and stats["loss"] == loss
    assert stats["acc"] == (logits.argmax(1) == torch.arange(6)).float().mean()
    assert weight == 6


def test_a_few_steps_learn_most_digits():
    torch.manual_seed(0)
    train, valid = Dataset("train"), Dataset("valid")
    model = DigitClassifier(channels=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    for _ in range(2):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            model(images[chosen], labels[chosen])[0].backward()
            optimizer.step()
    _, stats, _ = model.eval()(torch.from_numpy(valid.images), torch.from_numpy(valid.labels))
    assert stats["acc"] > 0.8
