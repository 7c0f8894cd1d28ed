"""examples/gan: shapes, losses, the picture and the judgement. The training itself runs in a slow test."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from examples.digits.model import DigitClassifier
from examples.gan.evaluate import evaluate
from examples.gan.model import DigitGan, compare
from examples.gan.samples import SampleGrid, save_grid

#: Asked for without an import, which each worker would make when it collects.
pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="the digits are part of scikit-learn")


@pytest.fixture
def gan():
    torch.manual_seed(0)
    return DigitGan()


def batch(size=8):
    return {"image": torch.rand(size, 8, 8), "label": torch.arange(size).unsqueeze(1) % 10}


def test_each_loss_is_named_and_equals_the_hinge_loss(gan):
    gan.eval()  # the same weights in each pass: no power iteration, no batch statistics
    torch.manual_seed(1)
    data = batch()
    state = torch.get_rng_state()
    steps, stats, weight = gan(**data)
    assert [step.name for step in steps] == ["discriminator", "generator"] and weight == 8
    torch.set_rng_state(state)
    label = data["label"].squeeze(1)
    fake = gan.generate(label)
    real_score, fake_score = gan.discriminator(data["image"], label), gan.discriminator(fake, label)
    hinge = (1 - real_score).clamp(min=0).mean() + (1 + fake_score).clamp(min=0).mean()
    torch.testing.assert_close(steps[0].loss, hinge)
    torch.testing.assert_close(steps[1].loss, -fake_score.mean())
    assert set(stats) == {"real_score", "fake_score", "nearest", "variety"}


def test_the_discriminators_loss_does_not_reach_the_generator(gan):
    (discriminator, generator), stats, _ = gan(**batch())
    discriminator.loss.backward(retain_graph=True)
    assert all(p.grad is None for p in gan.generator.parameters())
    generator.loss.backward(inputs=list(gan.generator.parameters()))
    assert all(p.grad.abs().sum() > 0 for n, p in gan.generator.named_parameters() if n.endswith("weight"))
    assert not any(value.requires_grad for value in stats.values())


def test_images_lie_between_zero_and_one_and_follow_the_given_random_generator(gan):
    label = torch.arange(10)
    first = gan.eval().generate(label, torch.Generator().manual_seed(3))
    assert first.shape == (10, 8, 8) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, gan.generate(label, torch.Generator().manual_seed(3)))


def test_compare_on_known_images():
    label = torch.arange(2).repeat_interleave(4)
    real = label.reshape(-1, 1, 1) + 0.1 * torch.rand(8, 8, 8)
    assert compare(real, real, label)["nearest"] == 1.0
    torch.testing.assert_close(compare(real, real, label)["variety"], torch.tensor(1.0))
    assert compare(real, real.flip(0), label)["nearest"] == 0.0
    same = label.reshape(-1, 1, 1).expand(8, 8, 8).float()
    assert compare(real, same, label)["variety"] == 0.0


def test_the_picture_comes_every_n_epochs_from_rank_zero_and_disturbs_nothing(gan, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="pictures need matplotlib")
    callback = SampleGrid(str(tmp_path / "samples"), every_n_epochs=2)
    module = SimpleNamespace(model=gan)
    state = torch.get_rng_state()
    before = {key: value.clone() for key, value in gan.state_dict().items()}
    for epoch in range(5):
        callback.on_train_epoch_end(SimpleNamespace(current_epoch=epoch, is_global_zero=True), module)
    callback.on_train_epoch_end(SimpleNamespace(current_epoch=5, is_global_zero=False), module)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["epoch002.png", "epoch004.png"]
    assert image.imread(tmp_path / "samples" / "epoch002.png").shape[:2] == (400, 400)
    assert gan.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in gan.state_dict().items())


def test_the_grid_has_a_row_for_each_digit(gan, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="pictures need matplotlib")
    gan.generate = lambda label, generator: (label / 9.0).reshape(-1, 1, 1).expand(-1, 8, 8)
    save_grid(gan, tmp_path / "grid.png")
    grid = torch.from_numpy(image.imread(tmp_path / "grid.png"))[..., 0].reshape(10, 40, 400)
    torch.testing.assert_close(grid[:, 20, 20], torch.arange(10) / 9.0, atol=0.01, rtol=0)


def test_evaluation_asks_the_classifier(gan):
    classifier = DigitClassifier(channels=4)
    result = evaluate(gan, classifier)
    assert set(result) == {"generated", "real", "nearest", "variety"}
    classifier.logits = lambda image: torch.nn.functional.one_hot(torch.zeros(len(image), dtype=int), 10)
    result = evaluate(gan, classifier)
    assert result["generated"] == result["real"] == pytest.approx(29 / 300, abs=0.03)
