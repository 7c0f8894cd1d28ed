"""ESPnet2's two turns a batch: as espnet2's own trainer takes them; what is left out, skipped, cached and refused."""

import json
from pathlib import Path

import gan_lab
import pytest
import torch
from quiet import QUIET
from rank_gan import config, train
from rank_lab import results_of
from rank_launch import Ranks, launched

from espnet3_lite import ESPnetModule, ESPnetTrainer, MisconfigurationException
from espnet3_lite.config.schema import ConfigError, check_config
from espnet3_lite.espnet.gan import ESPnetGANModule, module_of

GOLDEN = Path(__file__).parents[1] / "golden" / "gan" / "turns.json"
QUIET = {**QUIET, "num_sanity_val_steps": 0, "max_epochs": 1}
BOTH = ["discriminator", "generator"]


def fit(model, folder, settings, batches, valid=None, **trainer_settings):
    module = ESPnetGANModule(model, settings)
    trainer = ESPnetTrainer(module, folder, {**QUIET, **settings["trainer"], **trainer_settings})
    trainer.fit(batches, valid)
    return trainer.trainer


class Recording(ESPnetGANModule):
    """Keeps what `gan_lab.record_steps` sees."""

    def configure_optimizers(self):
        optimizers, schedulers = super().configure_optimizers()
        self.steps = gan_lab.record_steps(self.model, dict(zip(gan_lab.RATE, optimizers, strict=True)))
        return optimizers, schedulers


@pytest.mark.parametrize("name", gan_lab.CASES)
def test_each_turn_is_that_of_espnet2s_own_trainer(name, tmp_path):
    recorded = json.loads(GOLDEN.read_text())[name]
    case = dict(gan_lab.CASES[name])
    module = Recording(gan_lab.TwoTurns(index=case.pop("index", "number")), config(case))
    trainer = ESPnetTrainer(module, tmp_path, QUIET)
    trainer.fit(gan_lab.batches())
    assert [step[0] for step in module.steps] == [step[0] for step in recorded["steps"]]
    for (_, values, rate), (_, expected, expected_rate) in zip(module.steps, recorded["steps"], strict=True):
        assert values == pytest.approx(expected, rel=0, abs=1e-12)
        assert rate == pytest.approx(expected_rate, rel=1e-14)
    assert trainer.trainer.global_step == 8


def test_both_turns_values_are_logged(tmp_path):
    trainer = fit(gan_lab.TwoTurns(), tmp_path, config(), gan_lab.batches(), gan_lab.batches(2))
    names = ["discriminator/loss", "discriminator_loss", "generator/loss", "generator_loss"]
    updates = ["discriminator/update_step", "generator/update_step"]
    found = sorted(name for name in trainer.callback_metrics if "/" in name)
    assert found == sorted([f"train/{name}" for name in names + updates] + [f"valid/{name}" for name in names])
    assert trainer.callback_metrics["train/generator/update_step"] == 8.0
    model = trainer.lightning_module.model
    losses = []
    for _, batch in gan_lab.batches(2):
        model.fake = None
        losses.append(model(forward_generator=False, **batch)["loss"].item())
    assert float(trainer.callback_metrics["valid/discriminator_loss"]) == pytest.approx(sum(losses) / 2)


def test_what_the_hooks_get_holds_both_losses(tmp_path):
    from espnet3_lite import Callback

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.outputs = outputs

    look = Look()
    module = ESPnetGANModule(gan_lab.TwoTurns(), config())
    trainer = ESPnetTrainer(module, tmp_path, {**QUIET, "callbacks": [look]})
    trainer.fit(gan_lab.batches(1))
    assert sorted(look.outputs) == ["discriminator/loss", "generator/loss", "loss"]
    total = look.outputs["discriminator/loss"] + look.outputs["generator/loss"]
    assert look.outputs["loss"] == total and not total.requires_grad


# ---- a loss that is not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "calls", "updates"),
    [
        ("generator", [*BOTH, "clear"], {"generator": 1, "discriminator": 2}),
        ("discriminator", ["discriminator", "clear"], {"generator": 1, "discriminator": 1}),
    ],
)
def test_a_turn_that_is_not_finite_is_skipped_with_what_follows(turn, calls, updates, tmp_path):
    with pytest.warns(UserWarning, match=f"batch 1: loss of '{turn}' is nan .*; skipped on all workers"):
        found = train(tmp_path, bad={4: turn})
    assert found["calls"] == [*BOTH, "clear", *calls]
    assert found["updates"] == updates
    assert found["global_step"] == updates["discriminator"]  # batches in which at least one optimizer stepped


def test_what_an_earlier_turn_has_logged_stays(tmp_path):
    with pytest.warns(UserWarning, match="skipped on all workers"):
        trainer = fit(gan_lab.TwoTurns(bad={0: "generator"}), tmp_path, config(), gan_lab.batches(1))
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert values["train/discriminator/update_step"] == 1.0 and values["train/discriminator_loss"] > 0
    assert "train/generator_loss" not in values


# ---- turns that are left out ---------------------------------------------------------------------------------------


def test_the_discriminators_turn_is_left_out_with_its_probability(tmp_path):
    always = train(tmp_path, gan={"skip_discriminator_prob": 1.0})
    assert always["calls"] == ["generator", "clear"] * 2 and always["updates"] == {"generator": 2, "discriminator": 0}
    half = train(tmp_path, count=80, batch_size=2, gan={"skip_discriminator_prob": 0.5})
    assert half["updates"]["generator"] == 40 and 10 < half["updates"]["discriminator"] < 30


def test_a_resumed_run_leaves_out_the_same_ones(tmp_path):
    settings = {"count": 20, "batch_size": 2, "gan": {"skip_discriminator_prob": 0.5}}
    whole = train(tmp_path, epochs=2, **settings)
    first = train(tmp_path, epochs=1, **settings)
    resumed = train(tmp_path, epochs=2, ckpt_path=tmp_path / "epoch1.ckpt", **settings)
    assert first["calls"] + resumed["calls"] == whole["calls"]
    assert resumed["weights"] == whole["weights"]


def test_no_forward_run_only_loads(tmp_path):
    model = gan_lab.TwoTurns()
    trainer = fit(model, tmp_path, config({"no_forward_run": True}), gan_lab.batches(), gan_lab.batches(2))
    assert model.calls == [] and (trainer.global_step, trainer.current_epoch) == (0, 1)
    assert trainer.fit_loop.batches_seen == 8


def test_a_codecs_cache_is_cleared_where_espnet2_clears_it(tmp_path):
    model = gan_lab.TwoTurns()
    model.codec = torch.nn.Module()
    model.codec._cache = "of the last batch"
    fit(model, tmp_path, config({"skip_discriminator_prob": 1.0}), gan_lab.batches(1))
    assert model.codec._cache is None


def test_each_optimizer_clips_its_own_gradients(tmp_path):
    settings = config(optimizer="SGD", scheduler=False, gradient_clip_val=1e-3)
    module = Recording(gan_lab.TwoTurns(), settings)
    before = torch.cat([parameter.detach().reshape(-1) for parameter in module.model.parameters()]).tolist()
    ESPnetTrainer(module, tmp_path, QUIET).fit(gan_lab.batches(1))
    for name, values, rate in module.steps:
        moved = torch.tensor(values, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)
        assert moved.norm().item() == pytest.approx(rate * 1e-3, rel=1e-4), name
        before = values


# ---- what is refused -----------------------------------------------------------------------------------------------


def returning(change):
    class Model(gan_lab.TwoTurns):
        def forward(self, **batch):
            return change(super().forward(**batch))

    return Model()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: (r["loss"], r["stats"], r["weight"]), "as ESPnet2's adversarial models do; got tuple"),
        (
            lambda r: {k: v for k, v in r.items() if k != "optim_idx"},
            "a dict with the keys \\['loss', 'stats', 'weight'",
        ),
        (lambda r: {**r, "stats": 3}, "stats \\(a dict of values"),
        (lambda r: {**r, "optim_idx": 2}, "optim_idx must be 0 \\(generator\\) or 1 \\(discriminator\\), .* got 2"),
        (lambda r: {**r, "optim_idx": torch.tensor([0, 1])}, "got tensor\\(\\[0, 1\\]\\)"),
        (lambda r: {**r, "optim_idx": [0]}, "got \\[0\\]"),
    ],
)
def test_what_such_a_model_must_not_return(change, words, tmp_path):
    with pytest.raises(MisconfigurationException, match=words):
        fit(returning(change), tmp_path, config(), gan_lab.batches(1))


def test_such_a_model_without_the_setting_says_what_to_set(tmp_path):
    module = ESPnetModule(gan_lab.TwoTurns(), {"optimizers": config()["optimizers"]})
    with pytest.raises(
        MisconfigurationException, match="got dict; for ESPnet2's adversarial models set trainer.gan: {}"
    ):
        ESPnetTrainer(module, tmp_path, QUIET).fit(gan_lab.batches(1))


@pytest.mark.parametrize("names", [("generator",), ("generator", "critic"), ()])
def test_the_optimizers_have_their_names(names):
    optimizer = {"_target_": "torch.optim.SGD", "lr": 0.1}
    settings = {"model": {"_target_": "gan_lab.TwoTurns"}, "trainer": {"gan": {}}}
    several = {"optimizers": {name: {"params": name, "optimizer": optimizer} for name in names}}
    with pytest.raises(ConfigError, match="trainer.gan: needs two optimizers, named 'generator' and 'discriminator'"):
        check_config({**settings, **(several if names else {"optimizer": optimizer})})


def test_the_setting_decides_the_module():
    assert type(module_of(gan_lab.TwoTurns(), config())) is ESPnetGANModule
    plain = {**config(), "trainer": {"gan": None}}
    assert type(module_of(gan_lab.TwoTurns(), plain)) is ESPnetModule


# ---- ranks ---------------------------------------------------------------------------------------------------------


CASES = {
    "uneven": {"count": 10},  # the second rank has no third batch
    "bad generator": {"count": 8, "bad": "generator"},
    "bad discriminator": {"count": 8, "bad": "discriminator"},
    "left out": {"count": 16, "gan": {"skip_discriminator_prob": 0.5, "generator_first": True}},
}


def arguments(case, bad_sample):
    """Of `rank_gan.train`, with the number of the sample that is bad."""
    return {**case, "bad": {bad_sample: case["bad"]}} if "bad" in case else case


#: Sample 6 is in the second rank's second batch, 4 in the second batch of one process.
RANKS = Ranks("rank_gan", json.dumps({name: arguments(case, 6) for name, case in CASES.items()}))


@pytest.fixture(scope="module")
def two(request, tmp_path_factory):
    """Each rank's results of all cases."""
    return results_of(launched(request, tmp_path_factory), 2)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_process_on_the_union(case, two, tmp_path):
    alone = train(tmp_path, batch_size=4, **arguments(CASES[case], 4))
    for found in (result[case] for result in two):
        assert found["updates"] == alone["updates"] and found["global_step"] == alone["global_step"]
        for name, values in alone["weights"].items():
            torch.testing.assert_close(
                torch.tensor(found["weights"][name], dtype=torch.float64),
                torch.tensor(values, dtype=torch.float64),
                rtol=0,
                atol=1e-12,
            )
