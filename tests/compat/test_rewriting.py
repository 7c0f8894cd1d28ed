"""`python -m espnet3_lite.compat`: imports change, nothing else does, and what cannot is told."""

import subprocess
import sys

import pytest

from espnet3_lite.compat.__main__ import main
from espnet3_lite.compat.rewriting import rewrite

#: A statement, and what becomes of it.
STATEMENTS = {
    "import lightning as L": "import espnet3_lite.compat as L",
    "import lightning.pytorch as pl, os": "import espnet3_lite.compat as pl, os",
    "import os, pytorch_lightning": "import os, espnet3_lite.compat as pytorch_lightning",
    "import lightning.pytorch": "import espnet3_lite.compat as lightning",
    "from lightning import Trainer": "from espnet3_lite.compat import Trainer",
    "from lightning import pytorch as pl": "from espnet3_lite.compat import pytorch as pl",
    "from lightning.pytorch import callbacks, loggers": "from espnet3_lite.compat import callbacks, loggers",
    "from pytorch_lightning import *": "from espnet3_lite.compat import *",
    "from pytorch_lightning import LightningModule as Base, Trainer": (
        "from espnet3_lite.compat import LightningModule as Base, Trainer"
    ),
    "from pytorch_lightning.callbacks.model_checkpoint import ModelCheckpoint": (
        "from espnet3_lite.compat.callbacks import ModelCheckpoint"
    ),
    "from  lightning.pytorch.loggers.tensorboard   import TensorBoardLogger": (
        "from  espnet3_lite.compat.loggers   import TensorBoardLogger"
    ),
    "from pytorch_lightning.utilities.types import STEP_OUTPUT": (
        "from espnet3_lite.compat.utilities.types import STEP_OUTPUT"
    ),
    "from lightning.pytorch.strategies.ddp import DDPStrategy": (
        "from espnet3_lite.compat.strategies import DDPStrategy"
    ),
    "from lightning.pytorch.utilities.model_summary import ModelSummary": (
        "from espnet3_lite.compat.utilities import ModelSummary"
    ),
    "from lightning.fabric.utilities.seed import seed_everything": (
        "from espnet3_lite.compat.utilities import seed_everything"
    ),
    "from lightning_utilities.core.apply_func import apply_to_collection": (
        "from espnet3_lite.compat import apply_to_collection"
    ),
    "from pytorch_lightning.trainer.states import RunningStage": ("from espnet3_lite.compat import RunningStage"),
    "from pytorch_lightning.core.lightning import LightningModule": ("from espnet3_lite.compat import LightningModule"),
}
#: What stays as it is, and what is said about it.
LEFT = {
    "from lightning.pytorch.cli import LightningCLI": "`LightningCLI` is left out",
    "from lightning.pytorch.plugins.environments import SLURMEnvironment": "plugins are Lightning's own",
    "from pytorch_lightning import Trainer, LightningModul": "`LightningModul` has no counterpart here; did you mean",
    "from lightning.pytorch.utilities import grad_norm, CombinedLoader": "`CombinedLoader` is left out",
}


@pytest.mark.parametrize("before", STATEMENTS)
def test_statements(before):
    assert rewrite(before).text == STATEMENTS[before]
    assert rewrite(before).problems == [] and rewrite(before).changes == 1
    exec(STATEMENTS[before], {})  # what takes its place can be imported


@pytest.mark.parametrize("before", LEFT)
def test_what_cannot_be_changed_stays_and_is_told(before):
    text, changes, problems = rewrite(f"x = 1\n{before}\n")
    assert (text, changes) == (f"x = 1\n{before}\n", 0)
    ((line, problem),) = problems
    assert line == 2 and LEFT[before] in problem


@pytest.mark.parametrize(
    "text",
    ["import lightning_something", "from .lightning import x", "from mine.pytorch_lightning import y", "lightning = 1",
     "s = 'import pytorch_lightning as pl'  # import pytorch_lightning"],
)  # fmt: skip
def test_other_statements_stay(text):
    assert rewrite(text) == (text, 0, [])


def test_uses_of_what_is_not_there_are_told():
    program = "import lightning.pytorch as pl\npl.Trainer.fit\npl.cli.LightningCLI(1)\npl.callbacks.Tmer()\n"
    assert rewrite(program).problems == [
        (3, "`cli` is left out: use `espnet3-lite train CONFIG`, or `espnet3_lite.load_config` and `instantiate`"),
        (4, "`pl.callbacks.Tmer`: there is no `Tmer`"),
    ]


def test_nothing_else_of_a_file_changes(tmp_path, capsys):
    """Line ends, comments, encoding, the mark of the byte order, blanks, form feeds, a second statement on a line."""
    before = (
        "# -*- coding: latin-1 -*-\r\n"
        "s = 'äß'; from pytorch_lightning.callbacks import (  # those\r\n"
        "    Timer,   # a timer\r\n"
        "    EarlyStopping)\r\n\f\r\n"
        "def f() :\r\n\timport pytorch_lightning as pl ; return pl\r\n"
        "t = '''\n   import lightning\n'''"
    )
    path = tmp_path / "program.py"
    path.write_bytes(before.encode("latin-1"))
    path.chmod(0o755)
    assert main([str(path)]) == 0
    expected = before.replace("pytorch_lightning.callbacks", "espnet3_lite.compat.callbacks")
    expected = expected.replace("import pytorch_lightning as pl", "import espnet3_lite.compat as pl")
    assert path.read_bytes() == expected.encode("latin-1")
    assert path.stat().st_mode & 0o777 == 0o755
    assert capsys.readouterr().out == f"{path}: 2 imports changed\n"
    assert main([str(path)]) == 0 and path.read_bytes() == expected.encode("latin-1")  # a second time changes nothing


def test_the_command(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text("import lightning as L\nL.pytorch.LightningCLI\n")
    (tmp_path / "b.py").write_text("import os\n")
    (tmp_path / "c.py").write_text("import lightning as\n")
    command = [sys.executable, "-m", "espnet3_lite.compat", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 1
    assert finished.stdout == f"{tmp_path}/inner/a.py: 1 import changed\n"
    assert f"{tmp_path}/inner/a.py:2: `LightningCLI` is left out" in finished.stderr
    assert f"{tmp_path}/c.py: SyntaxError" in finished.stderr and "left as it is" in finished.stderr
    assert (tmp_path / "inner" / "a.py").read_text() == "import espnet3_lite.compat as L\nL.pytorch.LightningCLI\n"


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    path = tmp_path / "a.py"
    path.write_text("import lightning\n")
    assert main(["--dry-run", str(path)]) == 0
    assert path.read_text() == "import lightning\n" and "1 import changed" in capsys.readouterr().out
