"""A conditional generative adversarial network for 8 x 8 digits: ESPnet3's contract with two optimizers."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from espnet3_lite import OptimizationStep


class Generator(nn.Module):
    """Noise and a label in, an image out.

    Args:
        latent: Size of the noise.
        channels: Channels of the last but one layer; the one before has twice as many.
    """

    def __init__(self, latent: int = 32, channels: int = 32):
        super().__init__()
        self.latent = latent
        self.network = nn.Sequential(
            nn.Linear(latent + 10, 2 * channels * 4 * 4),
            nn.Unflatten(1, (2 * channels, 4, 4)),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 1, kernel_size=3, padding=1),
            nn.Sigmoid(),  # pixels lie in [0, 1], as the real ones do
        )

    def forward(self, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Noise ``(batch, latent)`` and labels ``(batch,)`` to images ``(batch, 8, 8)``."""
        return self.network(torch.cat([noise, F.one_hot(label, 10).float()], dim=1)).squeeze(1)


class Discriminator(nn.Module):
    """Scores how real an image looks for its label: a projection discriminator (Miyato and Koyama, 2018).

    Spectral normalisation (Miyato et al., 2018) bounds its slope, which keeps the generator's gradients
    useful. There is no BatchNorm here: it would mix real and generated images of a batch.

    Args:
        channels: Channels of the first layer; the others have twice and four times as many.
    """

    def __init__(self, channels: int = 32):
        super().__init__()
        self.features = nn.Sequential(
            spectral_norm(nn.Conv2d(1, channels, kernel_size=3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(channels, 2 * channels, kernel_size=4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * channels, 4 * channels, kernel_size=4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.realness = spectral_norm(nn.Linear(16 * channels, 1))
        self.of_label = spectral_norm(nn.Embedding(10, 16 * channels))

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Images ``(batch, 8, 8)`` and labels ``(batch,)`` to scores ``(batch,)``; higher is more real."""
        features = self.features(image.unsqueeze(1))
        return self.realness(features).squeeze(1) + (features * self.of_label(label)).sum(dim=1)


class DigitGan(nn.Module):
    """Both networks. `forward` names for each loss the optimizer that it belongs to."""

    def __init__(self, latent: int = 32):
        super().__init__()
        self.generator = Generator(latent)
        self.discriminator = Discriminator()

    def generate(self, label: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """An image for each label ``(batch,)``, from noise of torch's global or the given generator."""
        noise = torch.randn(len(label), self.generator.latent, generator=generator).to(label.device)
        return self.generator(noise, label)

    def forward(self, image: torch.Tensor, label: torch.Tensor):
        """One batch of real images ``(batch, 8, 8)`` and labels ``(batch, 1)``."""
        label = label.squeeze(1)
        fake = self.generate(label)
        # Detached, so that the discriminator's loss does not run back through the generator. The other way
        # round the trainer takes care: the generator's loss leaves no gradient on the discriminator.
        real_score, fake_score = self.discriminator(torch.cat([image, fake.detach()]), torch.cat([label, label])).chunk(
            2
        )
        discriminator_loss = F.relu(1 - real_score).mean() + F.relu(1 + fake_score).mean()  # hinge
        generator_loss = -self.discriminator(fake, label).mean()
        stats = {"real_score": real_score.mean().detach(), "fake_score": fake_score.mean().detach()}
        if not self.training:
            stats.update(compare(image, fake, label))
        steps = [
            OptimizationStep(loss=discriminator_loss, name="discriminator"),
            OptimizationStep(loss=generator_loss, name="generator"),
        ]
        return steps, stats, torch.tensor(len(image), device=image.device)


def compare(real: torch.Tensor, fake: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """How right and how varied generated images are, without any further network.

    Args:
        real: ``(batch, 8, 8)``.
        fake: ``(batch, 8, 8)``, generated for the same labels.
        label: ``(batch,)``.

    Returns:
        ``nearest``: the share of generated images whose nearest real one has the wanted label; ``variety``:
        mean distance between two generated images of one label, divided by the same of the real ones.
    """
    real, fake = real.flatten(1), fake.flatten(1)
    nearest = (label[torch.cdist(fake, real).argmin(dim=1)] == label).float().mean()
    same = (label.unsqueeze(0) == label.unsqueeze(1)).float()
    variety = (torch.cdist(fake, fake) * same).sum() / (torch.cdist(real, real) * same).sum()
    return {"nearest": nearest, "variety": variety}
