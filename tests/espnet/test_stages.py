"""`espnet3-lite stage`: espnet3's own launcher runs, with our names for those of Lightning, in its workers too."""

import os
import sys

import pytest
from installed_lab import run, write

from espnet3_lite.config.targets import is_installed
from espnet3_lite.espnet.stages import run_stage
from espnet3_lite.exceptions import MisconfigurationException

WHEEL = {
    "espnet3/__init__.py": "",
    "espnet3/systems/__init__.py": "",
    "espnet3/systems/base/__init__.py": "",
    "espnet3/systems/base/system.py": "class BaseSystem: pass\n",
    "espnet3/systems/toy/__init__.py": "",
    "espnet3/systems/toy/system.py": """
        from espnet3.systems.base.system import BaseSystem
        import lightning as L

        class ToySystem(BaseSystem):
            base = L.LightningModule
        """,
    "espnet3/systems/launch.py": """
        import multiprocessing, sys
        from pathlib import Path

        def in_worker(queue):
            import lightning.pytorch
            queue.put(lightning.pytorch.Callback.__module__)

        def launch(system, argv=None):
            from src.builder import WHOSE
            words = sys.argv[1:] if argv is None else argv
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            worker = context.Process(target=in_worker, args=(queue,))
            worker.start()
            lines = [system.__name__, system.base.__module__, WHOSE, queue.get(timeout=60)]
            lines += [*words[:3], Path(words[3]).name]
            worker.join()
            Path("seen.txt").write_text("\\n".join(lines))
        """,
    "src/__init__.py": "",
    "src/builder.py": "WHOSE = 'the wheel'\n",
}
RUN = """
    from espnet3.systems.launch import launch
    from espnet3.systems.toy.system import ToySystem

    class Mine(ToySystem):
        pass

    if __name__ == "__main__":
        launch(Mine)
    """
RECIPE = {"conf/training.yaml": "a: 1\n", "src/__init__.py": "", "src/builder.py": "WHOSE = 'the recipe'\n"}
SEEN = ["espnet3_lite.module.lite_module", "the recipe", "espnet3_lite.callbacks.base", "--stages"]


@pytest.mark.parametrize(
    "own", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["the recipe's run.py", "the installed system"]
)
def test_a_stage_is_espnet3s_own(own, tmp_path):
    wheel = write(tmp_path / "site", WHEEL)
    recipe = write(tmp_path / "egs3/mine/toy", {**RECIPE, **({"run.py": RUN} if own else {})})
    code, said = run(["-m", "espnet3_lite", "stage", "train_tokenizer", "conf/training.yaml"], recipe, wheel)
    assert code == 0, said
    system = "Mine" if own else "ToySystem"
    seen = (recipe / "seen.txt").read_text().splitlines()
    assert seen == [system, *SEEN, "train_tokenizer", "--training_config", "training.yaml"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A process in which espnet3 is found; what was imported of it is put back."""
    monkeypatch.syspath_prepend(write(tmp_path / "site", WHEEL))
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "espnet3"}
    for name in before:
        del sys.modules[name]
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] == "espnet3"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_what_a_stage_needs(tmp_path, installed):
    recipe = write(tmp_path / "egs3/mine/unknown", RECIPE)
    with pytest.raises(MisconfigurationException, match="there is no configuration file .*missing.yaml"):
        run_stage("collect_stats", recipe / "conf/missing.yaml")
    (recipe / "lone.yaml").write_text("a: 1\n")
    with pytest.raises(MisconfigurationException, match="is in no recipe's `conf` folder"):
        run_stage("collect_stats", recipe / "lone.yaml")
    environment, words = dict(os.environ), list(sys.argv)
    with pytest.raises(
        MisconfigurationException, match="no run.py that names .* and no espnet3.systems.unknown.system"
    ):
        run_stage("collect_stats", recipe / "conf/training.yaml")
    assert (dict(os.environ), sys.argv) == (environment, words)


@pytest.mark.skipif(is_installed("espnet3"), reason="espnet is installed")
def test_without_espnet(tmp_path):
    recipe = write(tmp_path / "recipe", RECIPE)
    with pytest.raises(MisconfigurationException, match="stage create_dataset: espnet is not installed; `pip install"):
        run_stage("create_dataset", recipe / "conf/training.yaml")
