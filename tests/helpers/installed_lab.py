"""Processes that see a folder as if it were an installed package: at the end of their path, as site-packages is."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

PACKAGE_ROOT = Path(__file__).parents[2]


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def run(code_or_words, where, *paths):
    """A process with these folders at the end of its path; its output, or its error where it fails."""
    words = ["-c", textwrap.dedent(code_or_words)] if isinstance(code_or_words, str) else code_or_words
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (PACKAGE_ROOT, *sys.path[-1:], *paths)))}
    environment.pop("ESPNET3_LITE_USE_ESPNET", None)
    done = subprocess.run([sys.executable, *words], cwd=where, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr
