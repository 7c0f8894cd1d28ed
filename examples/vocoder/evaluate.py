"""How far from the recordings is what the vocoder makes of their log-mel energies, and what others make of them?

python -m examples.vocoder.evaluate exp/vocoder/valid.lsd.ave_3best.pth <folder>/recordings --wav exp/vocoder/wav
"""

import argparse
import time
import wave
from pathlib import Path

import torch

from examples.spoken_digits.dataset import SAMPLE_RATE, Dataset
from examples.vocoder.model import Vocoder
from examples.vocoder.segments import CutSegment
from examples.vocoder.spectra import griffin_lim, log_spectral_distance


@torch.no_grad()
def evaluate(model: Vocoder, speech: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Log-spectral distances, in dB, to waveforms ``(batch, samples)``, and how many seconds each way takes.

    Returns:
        ``trained``: of the model; ``griffin_lim``: of 60 iterations of Griffin and Lim from the same energies;
        ``untrained``: of a generator with random weights.
    """
    log_mel = model.eval().log_mel(speech)
    torch.manual_seed(0)
    ways = {
        "trained": model.generator,
        "griffin_lim": lambda log_mel: griffin_lim(log_mel, model.log_mel.filterbank),
        "untrained": Vocoder().generator,
    }
    results = {}
    for name, way in ways.items():
        started = time.perf_counter()
        copy = way(log_mel)
        results[name] = (log_spectral_distance(speech, copy).item(), time.perf_counter() - started)
    return results


def write_wav(path: Path, speech: torch.Tensor) -> None:
    """Write samples ``(samples,)`` in [-1, 1] as a file of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((32767 * speech.clamp(-1, 1)).to(torch.int16).numpy().astype("<i2").tobytes())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="averaged weights (.pth)")
    parser.add_argument("data_dir", help="folder of the WAV files")
    parser.add_argument("--wav", type=Path, help="write one recording of each word there, and its copy")
    arguments = parser.parse_args()
    model = Vocoder()
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    cut, test = CutSegment(), Dataset("test", arguments.data_dir)
    speech = torch.stack([torch.from_numpy(cut(item)["speech"]) for item in test])
    for name, (distance, seconds) in evaluate(model, speech).items():
        print(f"{name:<12} {distance:6.2f} dB, {seconds:.2f} s for {speech.numel() / SAMPLE_RATE:.0f} s of speech")
    if arguments.wav:
        arguments.wav.mkdir(parents=True, exist_ok=True)
        for index in range(0, len(test), 30):
            name = test.paths[index].stem
            write_wav(arguments.wav / f"{name}.wav", speech[index])
            copy = model.generator(model.log_mel(speech[index : index + 1]))[0]
            write_wav(arguments.wav / f"{name}.vocoder.wav", copy)


if __name__ == "__main__":
    main()
