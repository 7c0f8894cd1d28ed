"""The commands as their users give them: what they print, write and end with. Faults and signals: `test_faults.py`."""

import logging
import subprocess
import sys

import pytest
import torch
from toy_lab import checkpoint, logged, make_recipe, status

from espnet3_lite import __version__
from espnet3_lite.cli.commands import main
from espnet3_lite.config import load_config
from espnet3_lite.report import images

COMMANDS = ("train", "validate", "test", "average", "hooks", "collect-stats", "consolidate")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The toy experiment in a folder of its own, which is the working directory; logging and imports are put back.

    No pictures are drawn at a run's end, which takes longer than such a run (`tests/report` looks at them).
    """
    folder = make_recipe(tmp_path / "recipe")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    monkeypatch.setattr(images, "write_pictures", lambda pictures, folder: None)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield folder
    sys.modules.pop("toy", None)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def refused(capsys, *arguments, code=2):
    """Run a command that is refused. Returns what it said on stderr, which is its message alone."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == code
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


# ---- train ---------------------------------------------------------------------------------------------------------


def test_train_tells_what_was_written_where_and_goes_on(recipe, capsys, caplog):
    main(["train", "train.yaml", "trainer.max_epochs=2"])
    printed = capsys.readouterr().out
    assert "trained 2 epochs, 6 steps" in printed
    assert f"valid/loss {checkpoint(recipe)['callbacks'][best_key(recipe)]['best_model_score']:.4g}" in printed
    for name in ("config.yaml", "last.ckpt", "epoch1_step6_valid.loss.ckpt", "valid.loss.ave_2best.pth", "status.json"):
        assert name in printed and (recipe / "exp" / name).exists()
    best = [line.split(maxsplit=1) for line in printed.splitlines() if line.startswith("  epoch")]
    told = "the best checkpoints, whose names count epochs from 0"
    assert best == [["epoch0_step3_valid.loss.ckpt", told], ["epoch1_step6_valid.loss.ckpt"]]  # once
    assert [status(recipe)[key] for key in ("status", "epoch", "epochs_done")] == ["finished", 1, 2]
    caplog.set_level(logging.INFO)
    caplog.clear()
    main(["train", "train.yaml", "trainer.max_epochs=3"])
    assert f"Restored all states from the checkpoint at {recipe / 'exp' / 'last.ckpt'}" in caplog.text
    printed = capsys.readouterr().out
    assert "trained 3 epochs, 9 steps" in printed and "nothing was left" not in printed
    assert {row["epoch"] for row in logged(recipe)} == {"", "0", "1", "2"}
    main(["train", "train.yaml", "trainer.max_epochs=3"])  # nothing is left to do
    printed = capsys.readouterr().out.splitlines()
    end = printed.index("trained 3 epochs, 9 steps")
    assert printed[end - 1 : end + 1] == [
        "nothing was left to do: raise trainer.max_epochs to go on, or begin a new run with --fresh",
        "trained 3 epochs, 9 steps",
    ]


def best_key(recipe):
    return next(key for key in checkpoint(recipe)["callbacks"] if "'valid/loss'" in key)


def test_train_fresh_puts_the_old_run_aside(recipe, capsys):
    main(["train", "train.yaml", "trainer.max_epochs=1"])
    first = checkpoint(recipe)["state_dict"]
    main(["train", "train.yaml", "trainer.max_epochs=1", "--fresh", "seed=4"])
    (aside,) = recipe.glob("exp.*")
    old = torch.load(aside / "last.ckpt", weights_only=True)
    assert torch.equal(old["state_dict"]["head.weight"], first["head.weight"])
    assert not torch.equal(checkpoint(recipe)["state_dict"]["head.weight"], first["head.weight"])
    assert checkpoint(recipe)["epoch"] == 0, "the new run began anew"


def test_a_configuration_says_what_a_run_that_goes_on_really_takes(recipe, caplog):
    recorded = lambda: load_config(recipe / "exp" / "config.yaml")  # noqa: E731
    rate = lambda: checkpoint(recipe)["optimizer_states"][0]["param_groups"][0]["lr"]  # noqa: E731
    main(["train", "train.yaml", "trainer.max_epochs=1", "~scheduler", "~scheduler_interval", "~scheduler_monitor"])
    goes_on = ["train", "train.yaml", "~scheduler", "~scheduler_interval", "~scheduler_monitor", "optimizer.lr=0.01"]
    main([*goes_on, "trainer.max_epochs=2"])
    assert "goes on with the checkpoint's lr=0.05" in caplog.text and "--override-optimizer" in caplog.text
    assert "begin a new run (--fresh), or" in caplog.text
    assert (rate(), recorded().optimizer.lr, recorded().trainer.max_epochs) == (0.05, 0.05, 2)
    main([*goes_on, "trainer.max_epochs=3", "--override-optimizer"])
    assert (rate(), recorded().optimizer.lr) == (0.01, 0.01)


def test_several_files_and_overrides(recipe, capsys):
    main(["train", "train.yaml", "two_optimizers.yaml", "trainer.max_epochs=1", "optimizers.head.accum_grad_steps=7"])
    assert "train/head/update_step 1\n" in capsys.readouterr().out
    config = (recipe / "exp" / "config.yaml").read_text()
    assert "accum_grad_steps: 7" in config and "TwoLosses" in config
    assert len(checkpoint(recipe)["optimizer_states"]) == 2


def test_a_key_is_added_and_another_removed(recipe):
    main(["train", "train.yaml", "trainer.max_epochs=1", "+trainer.limit_train_batches=3", "~best_model_criterion"])
    assert checkpoint(recipe)["global_step"] == 1
    assert [path.name for path in (recipe / "exp").glob("*.pth")] == ["valid.loss.ave_1best.pth"], (
        "the default is there"
    )


def test_quiet_logs_warnings_only(recipe, capsys):
    main(["train", "train.yaml", "trainer.max_epochs=1", "--quiet"])
    printed = capsys.readouterr().out
    assert "trained 1 epoch, 3 steps" in printed and "INFO" not in printed


def test_fast_dev_run_leaves_nothing_and_takes_nothing_from_an_old_run(recipe, capsys):
    fast = ("train", "train.yaml", "+trainer.fast_dev_run=true", "--quiet")
    main([*fast])
    assert "trained 1 epoch" in capsys.readouterr().out
    assert not (recipe / "exp").exists()
    main(["train", "train.yaml", "trainer.max_epochs=1", "--quiet"])
    before = contents(recipe / "exp")
    main([*fast, "--fresh"])
    assert contents(recipe / "exp") == before and not list(recipe.glob("exp.*"))
    assert "written to" not in capsys.readouterr().out.split("trained 1 epoch")[-1]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_equals_sign_in_a_files_name(recipe, capsys):
    (recipe / "lr=1.yaml").write_bytes((recipe / "train.yaml").read_bytes())
    main(["train", "lr=1.yaml", "trainer.max_epochs=1", "optimizer.lr=0.125", "--quiet"])
    assert checkpoint(recipe)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.125


def test_a_run_whose_states_are_gone_does_not_begin_anew_by_itself(recipe, capsys):
    main(["train", "train.yaml", "trainer.max_epochs=2", "--quiet"])
    for path in [*recipe.glob("exp/step*.ckpt"), *recipe.glob("exp/steps/*")]:
        path.unlink()
    (recipe / "exp" / "last.ckpt").unlink()
    message = refused(capsys, "train", "train.yaml", "trainer.max_epochs=3", code=1)
    assert "exp holds an old run" in message and "epoch1_step6_valid.loss.ckpt" in message and "--fresh" in message


def test_another_models_weights_are_told_with_their_file(recipe, capsys):
    main(["train", "train.yaml", "trainer.max_epochs=1", "--quiet"])
    with open("toy.py", "a") as file:
        file.write("\n\nclass Wider(Model):\n    def __init__(self):\n        super().__init__()\n")
        file.write("        self.head = nn.Linear(8, 2)\n")
    sys.modules.pop("toy", None)
    for command, fix in (("train", "--fresh"), ("validate", "config.yaml beside them")):
        message = refused(capsys, command, "train.yaml", "trainer.max_epochs=2", "model._target_=toy.Wider", code=1)
        assert "size mismatch for head.weight" in message and fix in message
        assert ("last.ckpt: its weights" if command == "train" else "ave_1best.pth: its weights") in message


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_the_nearest_file_is_not_near_by_its_suffix(recipe, capsys):
    (recipe / "nocollate.yaml").write_text("")
    assert "did you mean" not in refused(capsys, "train", "nothere.yaml")
    assert "did you mean 'nocollate.yaml'?" in refused(capsys, "train", "nocolate.yaml")


def test_mistakes_are_told_all_at_once_and_nothing_is_written(recipe, capsys):
    message = refused(capsys, "train", "train.yaml", "trainer.max_epochs=many", "+trainer.gradient_clip=1")
    assert message.startswith("espnet3-lite: ")
    for part in ("trainer.max_epochs", "'many'", "gradient_clip", "gradient_clip_val"):
        assert part in message
    assert not (recipe / "exp").exists()


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["train", "nowhere.yaml"], ["nowhere.yaml"]),
        (["train", "trainer.max_epochs=1"], ["no configuration file", "name a YAML file first"]),
        (
            ["train", "train.yaml", "optimizer.lr", "=", "3"],
            ["'optimizer.lr = 3': write optimizer.lr=3, without spaces"],
        ),
        (["train", "train.yaml", "optimizer.lr=", "3"], ["write optimizer.lr=3, without spaces"]),
        (["train", "train.yaml", "optimizer.lr", "=3"], ["write optimizer.lr=3, without spaces"]),
        (["train", "train.yaml", "trainer.max_epohcs=1"], ["max_epohcs", "max_epochs"]),
        (["train", "train.yaml", "model._target_=toy.Modle"], ["toy.Modle", "Model"]),
        (["collect-stats", "train.yaml"], ["stats_dir"]),
        (["train", "train.yaml", "exp_dir=train.yaml/exp"], ["exp_dir: 'train.yaml/exp' cannot be written"]),
        (["train", "train.yaml", "exp_dir=.", "--fresh"], ["--fresh", "'.'", "working folder"]),
        (["train", "train.yaml", "dataset.train=[]"], ["dataset.train holds no samples"]),
        (["average", "exp", "--output", "mean.pth"], ["--output", "--checkpoints"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0] in COMMANDS else "",
)
def test_a_mistake_is_told_in_one_message(recipe, capsys, arguments, parts):
    message = refused(capsys, *arguments)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["validate", "train.yaml"], ["exp", "train first"]),
        (["test", "train.yaml", "--checkpoint", "gone.ckpt"], ["gone.ckpt", "does not exist"]),
        (["average", "exp"], ["exp", "no best checkpoints"]),
        (["average", "exp", "--checkpoints", "train.yaml", "gone.ckpt"], ["gone.ckpt: does not exist"]),
        (["average", "exp", "--checkpoints", "train.yaml"], ["train.yaml: not a checkpoint"]),
        (["consolidate", "gone", "plain.ckpt"], ["gone", "does not exist"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0] in COMMANDS else "",
)
def test_a_missing_checkpoint_is_told_in_one_message(recipe, capsys, arguments, parts):
    message = refused(capsys, *arguments, code=1)
    for part in parts:
        assert part in message


def test_traceback_shows_where_a_mistake_was_found(recipe):
    with pytest.raises(FileNotFoundError, match="train first"):
        main(["validate", "train.yaml", "--traceback"])


def test_an_unknown_command_or_option_is_refused(capsys):
    assert "invalid choice: 'trian'" in refused(capsys, "trian")
    assert "unrecognized arguments: --frsh; did you mean '--fresh'?" in refused(capsys, "train", "train.yaml", "--frsh")
    said = refused(capsys, "train", "train.yaml", "--lr", "3")
    assert "unrecognized arguments: --lr; a setting of the configuration is changed by key=value" in said
    said = refused(capsys, "train", "train.yaml", "--optimizer.lr=3")
    assert "a setting of the configuration has no dashes: optimizer.lr=3" in said
    said = refused(capsys, "average", "exp", "--lr", "3")
    assert "--lr" in said and "key=value" not in said
    assert "COMMAND" in refused(capsys)


# ---- validate, test ------------------------------------------------------------------------------------------------


def test_validate_and_test_print_the_averages_results(recipe, capsys):
    main(["train", "train.yaml", "trainer.max_epochs=2", "--quiet"])
    last = checkpoint(recipe)["callbacks"][best_key(recipe)]["current_score"]
    capsys.readouterr()

    main(["validate", "train.yaml", "--quiet", "--checkpoint", "exp/last.ckpt"])
    name, value = result_lines(capsys)[0]
    assert (name, float(value)) == ("valid/loss", pytest.approx(float(last), rel=1e-5))

    main(["validate", "train.yaml", "--quiet"])
    by_default = result_lines(capsys)
    main(["validate", "train.yaml", "--quiet", "--checkpoint", "exp/valid.loss.ave_2best.pth"])
    assert by_default == result_lines(capsys), "the average is the default"

    main(["test", "train.yaml", "--quiet"])
    ((name, value),) = result_lines(capsys)
    assert name == "far/loss" and float(value) == pytest.approx(loss_on_the_test_set(recipe), rel=1e-5)


def test_evaluations_write_nothing_and_name_no_epoch(recipe, capsys, caplog):
    main(["train", "train.yaml", "trainer.max_epochs=2", "--quiet"])
    before = contents(recipe / "exp")
    caplog.set_level(logging.INFO)
    caplog.clear()
    main(["validate", "train.yaml"])
    main(["test", "train.yaml"])
    assert contents(recipe / "exp") == before
    assert "summary:valid: valid_time=" in caplog.text and "epoch:valid" not in caplog.text


def test_a_test_sets_name_stands_once(recipe, capsys):
    with open("toy.py", "a") as file:
        file.write("\n\nclass Shares(Model):\n    def forward(self, x, y):\n")
        file.write("        loss, stats, weight = super().forward(x, y)\n")
        file.write("        return loss, {'loss': loss.detach(), 'invalid/share': torch.tensor(0.5)}, weight\n")
    sys.modules.pop("toy", None)
    main(["train", "train.yaml", "model._target_=toy.Shares", "trainer.max_epochs=1", "--quiet"])
    capsys.readouterr()
    main(["test", "train.yaml", "model._target_=toy.Shares", "--quiet"])
    assert "far/invalid/share 0.5\n" in capsys.readouterr().out


@pytest.mark.parametrize("rank", ["0", "1"])
def test_results_are_rank_zeros_to_tell(recipe, capsys, monkeypatch, rank):
    main(["train", "train.yaml", "trainer.max_epochs=1", "--quiet"])
    average = recipe / "exp" / "valid.loss.ave_1best.pth"
    written = average.stat().st_mtime_ns
    capsys.readouterr()
    monkeypatch.setattr("espnet3_lite.distributed.rank.global_rank", lambda: int(rank))
    main(["hooks", "train.yaml", "--quiet"])
    main(["average", "exp", "--quiet"])
    printed = capsys.readouterr().out
    assert ("on_fit_start" in printed) == ("ave_1best" in printed) == (rank == "0")
    assert (average.stat().st_mtime_ns > written) == (rank == "0")


def result_lines(capsys):
    return [line.split() for line in capsys.readouterr().out.splitlines() if "/loss " in line]


def loss_on_the_test_set(recipe):
    """By hand: the averaged model on the six test samples."""
    import toy

    model = toy.Model()
    model.load_state_dict(torch.load(recipe / "exp" / "valid.loss.ave_2best.pth", weights_only=True))
    data = toy.Dataset(size=6, seed=2)
    with torch.no_grad():
        loss, _, _ = model.eval()(torch.from_numpy(data.x), torch.from_numpy(data.y))
    return float(loss)


def test_a_configuration_without_test_data_has_no_test(recipe, capsys):
    main(["train", "train.yaml", "trainer.max_epochs=1", "--quiet"])
    assert "dataset.test: the configuration names no test data" in refused(
        capsys, "test", "train.yaml", "~dataset.test"
    )


# ---- average, consolidate ------------------------------------------------------------------------------------------


def test_average_writes_the_same_average_again(recipe, capsys):
    main(["train", "train.yaml", "trainer.max_epochs=2", "--quiet"])
    path = recipe / "exp" / "valid.loss.ave_2best.pth"
    expected = torch.load(path, weights_only=True)
    path.unlink()
    capsys.readouterr()
    main(["average", "exp"])
    assert capsys.readouterr().out.strip().endswith("exp/valid.loss.ave_2best.pth")
    again = torch.load(path, weights_only=True)
    assert list(again) == list(expected)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_average_of_named_files(recipe, capsys):
    main(["train", "train.yaml", "trainer.max_epochs=2", "--quiet"])
    first, second = sorted((recipe / "exp").glob("epoch*.ckpt"))
    main(["average", "exp", "--checkpoints", str(first), str(second), "--output", "mean.pth"])
    assert capsys.readouterr().out.splitlines()[-1] == "mean.pth"
    weights = [torch.load(path, weights_only=True)["state_dict"]["head.weight"].double() for path in (first, second)]
    mean = torch.load("mean.pth", weights_only=True)["head.weight"]
    assert torch.equal(mean, ((weights[0] + weights[1]) / 2).float())


def test_consolidate_makes_a_plain_file_of_a_folder(tmp_path, capsys):
    import torch.distributed.checkpoint as sharded

    state = {"state_dict": {"weight": torch.arange(4.0)}, "epoch": 3}
    sharded.save(state, checkpoint_id=tmp_path / "sharded.ckpt")
    main(["consolidate", str(tmp_path / "sharded.ckpt"), str(tmp_path / "plain.ckpt")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "plain.ckpt")
    plain = torch.load(tmp_path / "plain.ckpt", weights_only=True)
    assert plain["epoch"] == 3 and plain["state_dict"]["weight"].tolist() == [0.0, 1.0, 2.0, 3.0]


# ---- hooks, collect-stats ------------------------------------------------------------------------------------------


def test_hooks_prints_who_listens_and_trains_nothing(recipe, capsys):
    main(["hooks", "train.yaml", "--quiet"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("on_"))
    assert "Witness" in lines["on_train_batch_end"]
    assert lines["on_test_start"] != lines["on_fit_end"] and "AverageCheckpointsCallback" in lines["on_fit_end"]
    assert lines["on_before_zero_grad"].strip() == "-"
    assert "ModelCheckpoint, ModelCheckpoint(valid/loss), ModelCheckpoint" in lines["on_validation_end"]
    assert not (recipe / "exp" / "last.ckpt").exists()


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(recipe):
    command = f"{sys.executable} -m espnet3_lite hooks train.yaml --quiet | true"
    finished = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize("command", ["train", "validate"])
def test_ctrl_c_while_loading_ends_without_a_traceback(recipe, capsys, command):
    with open("toy.py", "a") as file:
        file.write("\n\nclass Slow(Model):\n    def __init__(self):\n        raise KeyboardInterrupt\n")
    assert refused(capsys, command, "train.yaml", "model._target_=toy.Slow", code=130) == ""


def test_collect_stats_writes_below_stats_dir(recipe, capsys):
    with open("toy.py", "a") as file:
        file.write(
            "\n\nclass WithFeatures(Model):\n"
            "    def collect_feats(self, x, y):\n"
            "        return {'feats': x.unsqueeze(1), 'feats_lengths': torch.ones(len(x), dtype=torch.long)}\n"
        )
    main(["collect-stats", "train.yaml", "+stats_dir=stats", "model._target_=toy.WithFeatures", "--quiet"])
    shapes = (recipe / "stats" / "train" / "feats_shape").read_text().splitlines()
    assert len(shapes) == 26 and shapes[0] == "0 1,4"
    assert len((recipe / "stats" / "valid" / "feats_shape").read_text().splitlines()) == 10


# ---- help ----------------------------------------------------------------------------------------------------------


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_names_each_command_with_examples(capsys):
    text = help_of(capsys)
    for command in COMMANDS:
        assert f" {command} " in text
    assert "espnet3-lite train conf/training.yaml" in text and "torchrun" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_enough_to_use_it(command, capsys):
    text = help_of(capsys, command)
    takes_config = command not in ("average", "consolidate")
    assert f"usage: espnet3-lite {command}" in text
    assert ("CONFIG" in text) == takes_config
    assert ("+key=value adds one, ~key removes one" in text) == takes_config
    needed = {
        "train": ["--fresh", "last.ckpt", "Ctrl-C"],
        "validate": ["--checkpoint", "newest average"],
        "test": ["--checkpoint", "newest average"],
        "average": ["EXP_DIR", "--checkpoints", "--output", "{monitor}.ave_{K}best.pth"],
        "hooks": ["trains nothing"],
        "collect-stats": ["stats_dir", "collect_feats", "n_workers"],
        "consolidate": ["sharded", "output", "strategy: fsdp"],
    }
    for part in needed[command]:
        assert part in text


def test_the_package_is_a_program():
    words = [sys.executable, "-m", "espnet3_lite", "--version"]
    finished = subprocess.run(words, capture_output=True, text=True, check=True)
    assert finished.stdout == f"espnet3_lite {__version__}\n"
