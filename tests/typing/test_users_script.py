"""A type checker sees the types that a user relies on, under ``mypy --strict``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

REVEALED = {
    "self.trainer": "espnet3_lite.trainer.trainer.Trainer",
    "self.global_step": "int",
    "self.device": "torch._C.device",
    "self.current_epoch": "int",
    "trainer.current_epoch": "int",
    'trainer.callback_metrics["val_loss"]': "torch._tensor.Tensor",
    "trainer.max_steps": "int",
    "trainer.global_step": "int",
    "trainer.max_epochs": "int",
    "trainer.default_root_dir": "str",
    "trainer.logger": "espnet3_lite.loggers.base.Logger | None",
    "trainer.callbacks": "list[espnet3_lite.callbacks.base.Callback]",
    "trainer.optimizers": "list[torch.optim.optimizer.Optimizer]",
    "trainer.is_global_zero": "bool",
    "trainer.num_val_batches": "list[int | float]",
    "trainer.lightning_module": "espnet3_lite.module.lite_module.LiteModule",
    "trainer.validate(module)": "list[dict[str, float]]",
    "trainer.predict(module)": "list[Any] | None",
    "trainer.early_stopping_callback": "espnet3_lite.callbacks.early_stopping.EarlyStopping | None",
    "trainer.checkpoint_callback.best_model_path": "str",
    "best": "users_script.Line",
    'OptimizationStep(torch.zeros(()), "generator").name': "str",
    'load_config("training.yaml")': "espnet3_lite.config.container.Config",
}
ERRORS = {
    "# error: not a module": 'Argument 1 to "fit" of "Trainer" has incompatible type "int"; expected "LiteModule"',
    "# error: not a number": 'Argument "max_epochs" to "Trainer" has incompatible type "str"; expected "int | None"',
    "# error: no such argument": 'Unexpected keyword argument "max_epoch" for "Trainer"; did you mean "max_epochs"?',
    "# error: no such attribute": '"Trainer" has no attribute "max_epoch"',
    "# error: a trainer counts by itself": (
        'Incompatible types in assignment (expression has type "int", variable has type "Never")'
    ),
}


@pytest.mark.slow
def test_a_users_script_has_the_types_that_it_relies_on():
    command = [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--follow-imports=silent", "--config-file=",
               "tests/typing/users_script.py"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    revealed, errors = {}, {}
    script = (HERE / "users_script.py").read_text().splitlines()
    for line in done.stdout.splitlines():
        if found := re.match(r"[^:]*users_script\.py:(\d+): (note|error): (.*)", line):
            source = script[int(found[1]) - 1].strip()
            if found[2] == "note" and (shown := re.fullmatch(r'Revealed type is "(.*)"', found[3])):
                revealed[source.removeprefix("reveal_type(").removesuffix(")")] = shown[1].replace("builtins.", "")
            elif found[2] == "error":
                errors["# error" + source.partition("# error")[2]] = re.sub(r"  \[.*\]$", "", found[3])
    assert errors == ERRORS, done.stdout + done.stderr
    assert revealed == REVEALED
