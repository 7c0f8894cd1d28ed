"""Targets that a configuration may not name: judged by what they are, not by how they are called."""

import pytest

from espnet3_lite.config.allowed_targets import refusal
from espnet3_lite.config.schema import ConfigError, check_config
from espnet3_lite.config.targets import TargetError, find_target, instantiate


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("os.system", "os.system"),
        ("posix.system", "os.system"),
        ("logging.os.system", "os.system"),
        ("torch.os.system", "os.system"),
        ("os.system.__call__", "os.system"),
        ("os.execvp", "os.execvp"),
        ("os._exit", "os._exit"),
        ("os.kill", "os.kill"),
        ("os.remove", "os.remove"),
        ("builtins.eval", "builtins.eval"),
        ("builtins.eval.__call__", "builtins.eval"),
        ("builtins.exec", "builtins.exec"),
        ("builtins.__import__", "builtins.__import__"),
        ("builtins.getattr", "builtins.getattr"),
        ("builtins.exit", "_sitebuiltins.Quitter"),
        ("sys.exit", "sys.exit"),
        ("subprocess.run", "subprocess.run"),
        ("subprocess.Popen", "subprocess.Popen"),
        ("subprocess.Popen.__init__", "subprocess.Popen"),
        ("torch.utils.cpp_extension.subprocess.call", "subprocess.call"),
        ("shutil.rmtree", "shutil.rmtree"),
        ("pathlib.Path.unlink", "pathlib.Path.unlink"),
        ("pathlib.PosixPath.unlink", "pathlib.Path.unlink"),
        ("importlib.import_module", "importlib.import_module"),
        ("pickle.loads", "pickle.loads"),
        ("pickle.Unpickler", "pickle.Unpickler"),
        ("runpy.run_path", "runpy.run_path"),
        ("pty.spawn", "pty.spawn"),
        ("timeit.timeit", "timeit.timeit"),
        ("ctypes.CDLL", "ctypes.CDLL"),
        ("operator.methodcaller", "operator.methodcaller"),
        ("yaml.unsafe_load", "yaml.unsafe_load"),
    ],
)
def test_what_runs_removes_or_ends_things_is_refused_by_its_own_name(name, own):
    with pytest.raises(TargetError) as caught:
        find_target(name)
    # Where the interpreter defines a thing in C it has that module's name.
    assert f"{name!r} is refused: it is {own}, which" in str(caught.value).replace("it is _pickle.", "it is pickle.")


def test_an_alias_in_the_users_own_module_is_no_way_round(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "harmless_names.py").write_text(
        "from os import system as Model\nimport functools, subprocess\n"
        "run = functools.partial(subprocess.run, 'true')\n"
        "@functools.wraps(Model)\ndef wrapped(*a): return 1\n"
    )
    for name, own in (("Model", "os.system"), ("run", "subprocess.run"), ("wrapped", "os.system")):
        with pytest.raises(TargetError, match=f"is refused: it is {own}"):
            find_target(f"harmless_names.{name}")


@pytest.mark.parametrize("partial", [False, True])
def test_nothing_runs(tmp_path, partial):
    mark = tmp_path / "ran"
    with pytest.raises(TargetError, match=r"^callbacks\[0\]\._target_: 'os\.system' is refused"):
        instantiate(
            {"callbacks": [{"_target_": "os.system", "_args_": [f"touch {mark}"], "_partial_": partial}]},
        )
    assert not mark.exists()


def test_the_check_of_a_configuration_tells_it_with_the_others():
    with pytest.raises(ConfigError) as caught:
        check_config(
            {"model": {"_target_": "subprocess.run", "args": "true"}, "optimizer": {"_target_": "builtins.eval"}}
        )
    assert "model._target_: 'subprocess.run' is refused" in str(caught.value)
    assert "optimizer._target_: 'builtins.eval' is refused" in str(caught.value)


def test_exceptions_are_named_in_the_environment(monkeypatch):
    monkeypatch.setenv("ESPNET3_LITE_ALLOW_TARGETS", "os.remove, subprocess.run")
    assert find_target("subprocess.run").__name__ == "run"
    assert find_target("logging.os.remove").__name__ == "remove"
    with pytest.raises(TargetError, match="ESPNET3_LITE_ALLOW_TARGETS=subprocess.Popen in the environment allows it"):
        find_target("subprocess.Popen")


@pytest.mark.parametrize(
    "name",
    ["torch.optim.Adam", "torch.nn.Linear", "os.path.join", "os.getcwd", "pathlib.Path", "builtins.dict", "numpy.array",
     "functools.partial", "datetime.timedelta", "torch.nn.functional.relu", "torch.nn.Linear.forward", "math.sqrt",
     "torch.load", "collections.OrderedDict.fromkeys", "espnet3_lite.compat.CommonCollateFn"],
)  # fmt: skip
def test_what_configurations_name_is_allowed(name):
    assert callable(find_target(name))


def test_numbers_and_modules_on_the_way_are_nothing_to_judge():
    import math

    assert refusal("math.pi", [math, math.pi]) is None
