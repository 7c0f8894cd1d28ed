"""Does the generator write digits? Ask the classifier of examples/digits, which has seen real ones only.

python -m examples.gan.evaluate exp/gan/valid.nearest.ave_3best.pth exp/digits/valid.acc.ave_3best.pth
"""

import argparse

import torch

from examples.digits.dataset import Dataset
from examples.digits.model import DigitClassifier
from examples.gan.model import DigitGan, compare


@torch.no_grad()
def evaluate(gan: DigitGan, classifier: DigitClassifier) -> dict[str, float]:
    """Judge one generated image for each image of the test set, with the same label.

    Returns:
        ``generated``: the share of generated images that the classifier recognises; ``real``: its share of
        the real ones, for comparison; ``nearest`` and ``variety``: see `examples.gan.model.compare`.
    """
    gan.eval()
    classifier.eval()
    test = Dataset("test")
    real, label = torch.from_numpy(test.images), torch.from_numpy(test.labels).squeeze(1)
    fake = gan.generate(label, torch.Generator().manual_seed(1))
    results = compare(real, fake, label)
    for name, images in (("generated", fake), ("real", real)):
        results[name] = (classifier.logits(images).argmax(dim=1) == label).float().mean()
    return {name: value.item() for name, value in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gan", help="averaged weights (.pth) of examples/gan")
    parser.add_argument("classifier", help="averaged weights (.pth) of examples/digits")
    arguments = parser.parse_args()
    gan, classifier = DigitGan(), DigitClassifier()
    gan.load_state_dict(torch.load(arguments.gan, weights_only=True))
    classifier.load_state_dict(torch.load(arguments.classifier, weights_only=True))
    result = evaluate(gan, classifier)
    print(f"recognised: {result['generated']:.1%} of the generated digits, {result['real']:.1%} of the real")
    print(f"nearest real image has the wanted label: {result['nearest']:.1%}")
    print(f"variety within a digit: {result['variety']:.2f} of the real images'")


if __name__ == "__main__":
    main()
