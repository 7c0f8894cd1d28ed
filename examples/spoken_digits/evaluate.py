"""Spell the official test set with averaged weights.

python -m examples.spoken_digits.evaluate exp/spoken_digits/valid.cer.ave_5best.pth <folder>/recordings
"""

import argparse

import torch

from examples.spoken_digits.dataset import Dataset
from examples.spoken_digits.model import SpellingRecognizer
from examples.spoken_digits.text import edit_distance


def evaluate(model: SpellingRecognizer, test: Dataset) -> tuple[float, float, list[tuple[str, str, str]]]:
    """Recognise each recording on its own.

    Returns:
        Character error rate (wrong letters by letters spoken), accuracy (share of words without an error),
        and the mistakes as (file name, word, what was recognised).
    """
    model.eval()
    letters = errors = 0
    mistakes = []
    for path, item in zip(test.paths, test, strict=True):
        speech = torch.from_numpy(item["speech"]).unsqueeze(0)
        (guess,) = model.recognize(speech, torch.tensor([speech.size(1)]))
        letters += len(item["text"])
        errors += edit_distance(item["text"], guess)
        if guess != item["text"]:
            mistakes.append((path.name, item["text"], guess))
    return errors / letters, 1 - len(mistakes) / len(test), mistakes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="averaged weights (.pth)")
    parser.add_argument("data_dir", help="folder of the WAV files")
    arguments = parser.parse_args()
    model = SpellingRecognizer()
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    error_rate, accuracy, mistakes = evaluate(model, Dataset("test", arguments.data_dir))
    for name, word, guess in mistakes:
        print(f"{name}: {word} was heard as {guess!r}")
    print(f"test: character error rate {error_rate:.2%}, whole words right {accuracy:.2%}")


if __name__ == "__main__":
    main()
