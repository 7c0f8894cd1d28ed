"""One launch of two ranks for the quick cases of several test files: starting three processes is most of a launch.

A test file says which cases it needs, and gets what its ranks wrote::

    RANKS = Ranks("rank_cases", "single", "named")

    @pytest.fixture(scope="module")
    def two(request, tmp_path_factory):
        return results_of(launched(request, tmp_path_factory), 2)

The launch has the cases of all files of which a test runs now; workers of pytest-xdist share it.

torchrun --nproc-per-node 2 rank_launch.py FOLDER '{"test_two_ranks": ["rank_cases", "single"]}'
"""

import fcntl
import importlib
import json
import os
import sys
from pathlib import Path

from rank_lab import torchrun

#: How long the launch may take, in seconds: a bound for a hang, not a measure of speed.
PATIENCE = 600


class Ranks:
    """What a test file wants of two ranks.

    Args:
        script: A module beside this one; its `main(folder, *cases)` runs the cases.
        cases: Their names.
        prepare: A function that writes what the cases read; it gets their folder.
    """

    def __init__(self, script, *cases, prepare=None):
        self.words, self.prepare = [script, *cases], prepare


def launched(request, tmp_path_factory):
    """The folder of the results of the file whose fixture asks; the first to ask launches the ranks."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # which the workers share
    folder, ended = place / "two_ranks", place / "two_ranks.json"
    with open(place / "two_ranks.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ended.exists():
            files = {item.module for item in request.session.items if hasattr(getattr(item, "module", None), "RANKS")}
            for file in files:
                (folder / file.__name__).mkdir(parents=True)
                if file.RANKS.prepare is not None:
                    file.RANKS.prepare(folder / file.__name__)
            plan = {file.__name__: file.RANKS.words for file in sorted(files, key=lambda file: file.__name__)}
            run = torchrun(2, "rank_launch.py", folder, json.dumps(plan), timeout=PATIENCE)
            ended.write_text(json.dumps([run.returncode, run.stdout]))
    code, said = json.loads(ended.read_text())
    assert code == 0, said
    return folder / request.module.__name__


if __name__ == "__main__":
    for name, (script, *cases) in json.loads(sys.argv[2]).items():
        importlib.import_module(script).main(str(Path(sys.argv[1], name)), *cases)
