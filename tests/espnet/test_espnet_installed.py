"""With espnet installed and Lightning absent, as a user of ESPnet3 has it: a folder plays the installed wheel.

Each run is a process of its own, whose `PYTHONPATH` ends with that folder, as site-packages does.
"""

import sys

import pytest
import torch
from installed_lab import run, write

from espnet3_lite.config.targets import find_target, is_installed
from espnet3_lite.espnet.recipe_path import put_recipe_first
from espnet3_lite.loops.evaluation import _losses_of
from espnet3_lite.optim.slots import named_steps

WHEEL = {
    "espnet2/__init__.py": "",
    "espnet2/iterators/__init__.py": "",
    "espnet2/iterators/chunk_iter_factory.py": "class ChunkIterFactory: pass\n",
    "espnet2/iterators/sequence_iter_factory.py": "class SequenceIterFactory: pass\n",
    "espnet3/__init__.py": "",
    "espnet3/components/__init__.py": "",
    "espnet3/components/modeling/__init__.py": "",
    "espnet3/components/modeling/optimization_spec.py": """
        from dataclasses import dataclass
        from typing import Any

        @dataclass
        class OptimizationStep:
            loss: Any
            name: str
        """,
    "egs3/__init__.py": "",
    "egs3/other.py": "",
    "egs3/an4/__init__.py": "",
    "egs3/an4/asr/__init__.py": "",
    "egs3/an4/asr/src/__init__.py": "",
    "egs3/an4/asr/src/model.py": "WHOSE = 'the wheel'\n",
}
RECIPE = {
    "conf/training.yaml": """
        model: {_target_: src.gan.Gan}
        optimizers:
          generator: {params: generator, optimizer: {_target_: torch.optim.SGD, lr: 0.1}}
          discriminator: {params: discriminator, optimizer: {_target_: torch.optim.SGD, lr: 0.2}}
        dataset: {_target_: src.gan.Data}
        dataloader:
          collate_fn: {_target_: src.gan.Collate}
          train: {batch_size: 2}
          valid: {batch_size: 2}
        exp_dir: exp
        trainer: {max_epochs: 1, accelerator: cpu, logger: false, enable_progress_bar: false, num_sanity_val_steps: 0}
        """,
    "src/__init__.py": "",
    "src/gan.py": """
        import torch
        from espnet3.components.modeling.optimization_spec import OptimizationStep

        class Gan(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.generator = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
                self.discriminator = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

            def forward(self, x):
                g, d = self.generator.sum() * x.mean(), self.discriminator.sum() * x.mean()
                steps = [OptimizationStep(d, "discriminator"), OptimizationStep(g, "generator")]
                return steps, {"loss": (g + d).detach()}, None

        class Data:
            train = valid = [1.0, 3.0]

        class Collate:
            def __call__(self, samples):
                return ["a", "b"], {"x": torch.tensor(samples, dtype=torch.float64)}
        """,
}


@pytest.fixture
def wheel(tmp_path):
    return write(tmp_path / "site", WHEEL)


# ---- ESPnet3's own OptimizationStep --------------------------------------------------------------------------------


class TheirStep:
    """As ESPnet3's: a class of its own with the same two attributes."""

    def __init__(self, loss, name):
        self.loss, self.name = loss, name


def test_a_gan_that_returns_espnet3s_own_steps_trains(tmp_path, wheel):
    recipe = write(tmp_path / "recipe", RECIPE)
    code, said = run(["-m", "espnet3_lite", "train", "conf/training.yaml"], recipe, wheel)
    assert code == 0, said
    weights = torch.load(recipe / "exp/last.ckpt", weights_only=True)["state_dict"]
    assert [weights[name].item() for name in ("generator", "discriminator")] == pytest.approx([0.8, 0.6])
    assert "train/generator/loss 2" in said and "valid/discriminator/loss 1.2" in said


def test_a_step_is_known_by_its_loss_and_its_name():
    step = TheirStep(torch.tensor(1.0), "generator")
    assert named_steps(step) == [step] and named_steps((step, step)) == [step, step]
    assert named_steps([torch.tensor(1.0)]) is None and named_steps({"loss": 1.0, "name": "x"}) is None


def test_a_validation_loss_in_espnet3s_own_step_is_looked_at():
    two = [TheirStep(torch.tensor(3.0), "generator"), TheirStep(torch.tensor(1.0), "critic")]
    assert _losses_of(two) == [3.0, 1.0]
    assert _losses_of(TheirStep(torch.tensor(1.0), "generator")) == [1.0]


# ---- the recipe's own code comes first -----------------------------------------------------------------------------


@pytest.mark.parametrize("packages", [True, False], ids=["with __init__.py", "plain folders"])
@pytest.mark.parametrize("corpus", ["my_an4", "an4"], ids=["a new corpus", "one that the wheel has too"])
def test_a_recipes_code_comes_before_the_wheels(corpus, packages, tmp_path, wheel):
    root = write(tmp_path / "work", {f"egs3/{corpus}/asr/src/model.py": "WHOSE = 'the recipe'\n"})
    if packages:
        write(
            root / "egs3", {name: "" for name in ("__init__.py", f"{corpus}/__init__.py", f"{corpus}/asr/__init__.py")}
        )
    recipe = root / "egs3" / corpus / "asr"
    code = f"""
        from espnet3_lite.espnet.recipe_path import put_recipe_first
        put_recipe_first(".")
        from egs3.{corpus}.asr.src.model import WHOSE
        import src.model, egs3.an4.asr, egs3.other
        print(WHOSE, src.model.WHOSE, sep=", ")
        """
    assert run(code, recipe, wheel) == (0, "the recipe, the recipe\n")


def test_the_command_puts_it_there(tmp_path, wheel):
    (wheel / "src").mkdir()
    (wheel / "src/__init__.py").write_text("raise RuntimeError('not the recipe')\n")
    recipe = write(tmp_path / "egs3/my_an4/asr", RECIPE)
    words = ["-m", "espnet3_lite", "hooks", str(recipe / "conf/training.yaml"), "--quiet"]
    code, said = run(words, tmp_path, wheel)
    assert code == 0 and "on_train_epoch_end" in said, said


def test_a_folder_is_put_there_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["first", str(tmp_path), "last"])
    put_recipe_first(tmp_path)
    put_recipe_first(tmp_path)
    assert sys.path == [str(tmp_path), "first", "last"]


# ---- without espnet ------------------------------------------------------------------------------------------------

MISSING = "espnet is not installed; `pip install espnet` installs it without Lightning"


@pytest.mark.skipif(is_installed("espnet2"), reason="espnet is installed")
@pytest.mark.parametrize(
    ("setting", "place"),
    [
        (
            "+dataset.preprocessor._target_=espnet2.train.preprocessor.CommonPreprocessor",
            "dataset.preprocessor._target_",
        ),
        pytest.param(
            "model._target_=espnet2.asr.espnet_model.ESPnetASRModel", "model._target_", marks=pytest.mark.slow
        ),
        pytest.param("+task=espnet3.systems.esp2_asr.task.ASRTask", "task", marks=pytest.mark.slow),
        pytest.param("model._target_=src.wants.Model", "model._target_", marks=pytest.mark.slow),
    ],
)
def test_what_needs_espnet_says_so_before_anything_is_written(setting, place, tmp_path):
    recipe = write(tmp_path / "recipe", {**RECIPE, "src/wants.py": "from espnet2.text.cleaner import TextCleaner\n"})
    code, said = run(["-m", "espnet3_lite", "train", "conf/training.yaml", setting], recipe)
    assert code == 2 and place in said and MISSING in said, said
    assert not (recipe / "exp").exists()


# ---- Lightning's names ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(is_installed("lightning"), reason="Lightning is installed: nothing stands in for it")
def test_lightnings_names_in_a_recipes_code_are_ours(tmp_path, wheel):
    code = """
        from espnet3_lite.espnet.import_aliases import espnet_stand_ins
        with espnet_stand_ins():
            import lightning as L
            import lightning.pytorch as pl
            from lightning.pytorch import Callback, seed_everything
            from lightning.pytorch.callbacks import ModelCheckpoint
            from lightning.pytorch.callbacks.early_stopping import EarlyStopping
            from lightning.pytorch.utilities import rank_zero_only
            from lightning.pytorch.utilities.exceptions import MisconfigurationException
            from pytorch_lightning.loggers import CSVLogger
            from espnet3.components.modeling.optimization_spec import OptimizationStep
            print(L.LightningModule is pl.LightningModule, L.pytorch.callbacks.Timer.__module__)
            print(OptimizationStep.__module__)
            try:
                from lightning.pytorch.callbacks import ModelChekpoint
            except ImportError as error:
                print(error)
        print(Callback.__module__, CSVLogger.__module__)
        import sys
        print([name for name in sys.modules if "lightning" in name and "espnet3_lite" not in name])
        """
    assert run(code, tmp_path, wheel) == (
        0,
        "True espnet3_lite.callbacks.timer\nespnet3.components.modeling.optimization_spec\n"
        "cannot import name 'ModelChekpoint' from 'lightning.pytorch.callbacks' (unknown location)\n"
        "espnet3_lite.callbacks.base espnet3_lite.loggers.csv_logs\n[]\n",
    )


@pytest.mark.slow
def test_a_recipes_callback_that_imports_lightning_is_called(tmp_path):
    callback = """
        from lightning.pytorch import Callback

        class Speaks(Callback):
            def on_train_end(self, trainer, pl_module):
                print("spoken at step", trainer.global_step)
        """
    model = RECIPE["src/gan.py"].replace("espnet3.components.modeling.optimization_spec", "espnet3_lite")
    recipe = write(tmp_path / "recipe", {**RECIPE, "src/speaks.py": callback, "src/gan.py": model})
    words = ["-m", "espnet3_lite", "train", "conf/training.yaml", "+trainer.callbacks=[{_target_: src.speaks.Speaks}]"]
    code, said = run(words, recipe)
    assert code == 0 and "spoken at step 1" in said, said


# ---- espnet's own parts --------------------------------------------------------------------------------------------


def test_what_we_have_no_class_for_is_espnets(wheel, monkeypatch):
    monkeypatch.syspath_prepend(wheel)
    monkeypatch.delenv("ESPNET3_LITE_USE_ESPNET", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "espnet2"]:
        monkeypatch.delitem(sys.modules, name)
    theirs = find_target("espnet2.iterators.chunk_iter_factory.ChunkIterFactory")
    ours = find_target("espnet2.iterators.sequence_iter_factory.SequenceIterFactory")
    assert (theirs.__module__, ours.__module__) == (
        "espnet2.iterators.chunk_iter_factory",
        "espnet3_lite.espnet.data.iterators",
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "espnet2"]:
        del sys.modules[name]
