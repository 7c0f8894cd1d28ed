"""Ten toy utterances for each of the wheel's recipes whose corpus is not in it, laid out as the corpus itself is.

``python tests/reference/toy_corpora.py FOLDER`` in an environment with espnet; FOLDER has a copy of the wheel's `egs3`.
The recipes' own stages then read these files as they read the corpus. Each letter sounds as a tone of its own. What the
copy of a recipe says otherwise than the wheel's is in `SMALLER`: sizes that ten utterances cannot have.
"""

import random
import sys
from pathlib import Path

import numpy as np

RATE = 16000
WORDS = "one two three four five six seven eight nine ten red green blue left right up down yes no stop".split()

#: What ten utterances cannot have: a file of the recipe, a line of it, and what stands there instead.
SMALLER = {
    "librispeech_100/esp2_asr/conf/tuning/training_e_branchformer.yaml": {
        "vocab_size: 5000": "vocab_size: 30", "batch_bins: 3800000": "batch_bins: 30000",
    },
    "spgispeech/esp2_asr/conf/tuning/train_asr_conformer6_n_fft512_hop_length256.yaml": {
        "vocab_size: 5000": "vocab_size: 30", "batch_bins: 2734375": "batch_bins: 20000",
    },
    "spgispeech/esp2_asr/dataset/config.yaml": {"dev_size: 4000": "dev_size: 3"},
}  # fmt: skip


def utterances(count):
    """Texts of 3 to 6 words, each with its sound, about 0.7 to 1.7 seconds long."""
    chance = random.Random(7)
    for _ in range(count):
        text = " ".join(chance.choices(WORDS, k=chance.randint(3, 6)))
        yield text, sound_of(text)


def sound_of(text):
    """60 milliseconds a letter, in float32."""
    time = np.arange(int(0.06 * RATE)) / RATE
    tones = [0.3 * np.sin(2 * np.pi * (200 + 60 * (ord(letter) - 96)) * time) * (letter != " ") for letter in text]
    noise = np.random.default_rng(len(text)).normal(0, 0.01, len(tones) * len(time))
    return (np.concatenate(tones) + noise).astype(np.float32)


def librispeech(recipe):
    """``download/LibriSpeech/SPLIT/SPEAKER/CHAPTER``: FLAC, and a file of transcripts."""
    import soundfile

    counts = {"train-clean-100": 10, "dev-clean": 2, "dev-other": 2, "test-clean": 1, "test-other": 1}
    for split, count in counts.items():
        folder = recipe / "download" / "LibriSpeech" / split / "19" / "198"
        folder.mkdir(parents=True)
        lines = []
        for index, (text, sound) in enumerate(utterances(count)):
            soundfile.write(folder / f"19-198-{index:04}.flac", sound, RATE)
            lines.append(f"19-198-{index:04} {text.upper()}\n")
        (folder / "19-198.trans.txt").write_text("".join(lines))


def spgispeech(recipe):
    """``download/spgispeech``: a table a split, and WAV. The recipe takes ``dev_4k`` from the training split."""
    import soundfile

    root = recipe / "download" / "spgispeech"
    for split, count in {"train": 13, "val": 2}.items():
        folder = root / "spgispeech" / split / "07a785"
        folder.mkdir(parents=True)
        lines = ["wav_filename|wav_filesize|transcript\n"]
        for index, (text, sound) in enumerate(utterances(count)):
            file = folder / f"{index}.wav"
            soundfile.write(file, sound, RATE)
            lines.append(f"07a785/{index}.wav|{file.stat().st_size}|{text.capitalize()}.\n")
        (root / f"{split}.csv").write_text("".join(lines))


def main(folder):
    recipes = Path(folder) / "egs3"
    librispeech(recipes / "librispeech_100" / "esp2_asr")
    spgispeech(recipes / "spgispeech" / "esp2_asr")
    for name, lines in SMALLER.items():
        file = recipes / name
        text = file.read_text(encoding="utf-8")
        for line, smaller in lines.items():
            assert line in text, f"{name} has no line {line!r}"
            text = text.replace(line, smaller)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
