"""Strategies on two real processes, as users meet them: objects, what can be asked of them, FSDP2's ways, LBFGS."""

import pytest
import rank_strategy_cases
import torch
from quiet import QUIET
from rank_lab import results_of
from rank_launch import Ranks, launched

from espnet3_lite import MisconfigurationException, Trainer, instantiate
from espnet3_lite.distributed import launch
from espnet3_lite.distributed.launch import choose_device
from espnet3_lite.strategies import DDPStrategy, FSDPStrategy

RANKS = Ranks(
    "rank_strategy_cases",
    *(
        "lbfgs",
        "synchronized_norm",
        "synchronized_on_a_cpu",
        "shortened_embeddings",
        "weights_of_one_rank",
        "objects",
        "half",
    ),
    *("travelling", "shared_by_optimizers", "frozen_with_a_gradient", "sharded"),
)
QUIET = {"max_epochs": 1, **QUIET}


@pytest.fixture(scope="module")
def two(request, tmp_path_factory):
    """Each rank's results of all cases."""
    return results_of(launched(request, tmp_path_factory), 2)


def test_lbfgs_goes_the_same_way_on_both_ranks_as_in_one_process(two):
    """With and without a line search, stepped by the loop and by hand: both ranks decide by the mean loss."""
    assert two[0]["lbfgs"] == two[1]["lbfgs"]
    for name, (numbers, evaluations) in rank_strategy_cases.lbfgs().items():
        assert two[0]["lbfgs"][name][0] == pytest.approx(numbers, abs=1e-9), name
        assert two[0]["lbfgs"][name][1] == evaluations, name


def test_a_step_in_which_a_rank_has_no_data_is_left_out_where_batch_norm_is_synchronized(two):
    """Two steps are made; the third leaves no trace in the statistics."""
    for result in two:
        assert result["synchronized_norm"]["steps"] == 2
        assert result["synchronized_norm"]["mean"] == [2.0, 2.0, 2.0]
    (told,) = two[0]["synchronized_norm"]["told"]
    assert "1 of 2 ranks have no data left; SyncBatchNorm would count repetitions; skipped on all workers" in told


def test_sync_batchnorm_on_cpus_is_left_out_with_a_warning(two):
    assert two[0]["synchronized_on_a_cpu"] == {
        "kind": "BatchNorm1d", "told": ["sync_batchnorm=True does nothing on CPUs, where torch has no SyncBatchNorm"],
    }  # fmt: skip


def test_layers_whose_weights_part_are_told(two):
    """As with torch's own DDP, which says nothing: only buffers are sent, and no parameter."""
    assert two[0]["shortened_embeddings"]["weight"] != two[1]["shortened_embeddings"]["weight"]
    before, after = two[0]["shortened_embeddings"]["told"]
    assert before.startswith("Embedding 'words' has max_norm=0.1: its forward pass shortens the rows that this rank's")
    assert after.startswith("the ranks' weights are no longer the same: words.weight. Something changes them")
    assert rank_strategy_cases.shortened_embeddings()["told"] == []


def test_weights_that_were_changed_on_one_rank_are_told_after_the_epoch(two):
    (told,) = two[0]["weights_of_one_rank"]
    assert told.startswith("the ranks' weights are no longer the same: ")
    assert two[1]["weights_of_one_rank"] == rank_strategy_cases.weights_of_one_rank() == []


def test_an_object_of_strategies_is_the_trainers(two):
    """Each of two samples' means over two ranks: as one process with batches of two."""
    assert two[0]["objects"]["same"] and two[0]["objects"]["numbers"] == two[1]["objects"]["numbers"]
    alone = rank_strategy_cases.objects()["numbers"]
    assert two[0]["objects"]["numbers"] == pytest.approx(alone, abs=1e-12)


def test_what_lightnings_programs_ask_of_a_strategy(two):
    for rank, result in enumerate(two):
        assert result["objects"]["answers"] == {
            "reduced": [1.5, 3.0],
            "broadcast": {"rank": 1},
            "gathered": [[[2.0], [3.0]], [0, 1]],
            "gradient": [6.0],  # three from each rank
            "device": "cpu",
            "zero": rank == 0,
            "model": "DistributedDataParallel",
            "ranks": [rank, rank, 2, 0],
            "trainer": [[0], False],
            "sampler": {"num_replicas": 2, "rank": rank},
        }
    assert rank_strategy_cases.objects()["answers"] == {
        "reduced": [1.0, 1.0],
        "broadcast": {"rank": 0},
        "gathered": [[2.0], 0],
        "gradient": [3.0],
        "device": "cpu",
        "zero": True,
        "model": "Unused",
        "ranks": [0, 0, 1, 0],
        "trainer": [[0], False],
        "sampler": {"num_replicas": 1, "rank": 0},
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_half_precision_without_a_copy_in_full(two, processes):
    found = rank_strategy_cases.half() if processes == 1 else two[0]["half"]
    assert found == dict.fromkeys(("batch", "made", "weight"), "torch.bfloat16")


def test_named_optimizers_gradients_travel_during_backward(two):
    """`second` has 9 numbers and 2 flags, `first` 32 and 2: in one message where both step; no second copy."""
    for result in two:
        sent = {name: found["sent"] for name, found in result["travelling"].items() if name != "same"}
        assert {name: [size for within, size in of_one if within] for name, of_one in sent.items()} == {
            "nobody": [45, 34],
            "looks at no gradients": [45, 45],
            "one rank": [11, 34] * 2,  # one after another, for a hook that looks at gradients in between
            "one rank later": [45, 11, 34],
        }
        outside = [size for of_one in sent.values() for within, size in of_one if not within]
        assert not {11, 34, 45} & set(outside)
        assert all(found["is_a_view"] for name, found in result["travelling"].items() if name != "same")


def test_a_hook_on_one_rank_sees_the_gradients_that_are_stepped(two):
    assert [result["travelling"]["same"] for result in two] == [[[], []], [[True] * 4, [True] * 2]]


@pytest.mark.parametrize("case", ["shared_by_optimizers", "frozen_with_a_gradient"])
def test_named_optimizers_of_the_modules_own_train_as_in_one_process(two, case):
    """Several passes give what they share a gradient; what is frozen keeps the one that it had."""
    alone = getattr(rank_strategy_cases, case)()
    assert two[0][case] == two[1][case]
    for found, expected in zip(two[0][case], alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-12, rel=0)


def test_fsdp_shards_what_was_on_the_meta_device_and_predicts(two):
    first, second = (result["sharded"] for result in two)
    assert first["same"] and first["meta"] == second["meta"]
    values, devices = first["meta"]
    assert set(devices) == {"cpu"} and len({tuple(value) for value in values}) == 4  # none is empty or another's
    assert all(torch.tensor(value).isfinite().all() and max(map(abs, value)) > 0.05 for value in values)
    assert len(first["predicted"]) == len(second["predicted"]) == 2
    assert (
        "(ParameterList) has parameters or buffers on the meta device, and no `reset_parameters()`" in first["refused"]
    )


def test_fsdp_gathers_in_the_mixed_modes_dtype_and_keeps_float32(two):
    assert two[0]["sharded"]["policy"] == ["torch.bfloat16", "torch.float32"]
    assert set(two[0]["sharded"]["mixed"]) == {"torch.float32"}


# ---- in one process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["lightning.pytorch.strategies", "pytorch_lightning.strategies.ddp"])
def test_lightnings_path_in_yaml_gives_our_strategy(path):
    strategy = instantiate({"_target_": f"{path}.DDPStrategy", "find_unused_parameters": True})
    assert type(strategy) is DDPStrategy and strategy.find_unused_parameters


def test_one_process_needs_no_group():
    trainer = Trainer(**QUIET, strategy=DDPStrategy())
    assert trainer.strategy.name == "single" and trainer.world_size == 1
    assert not torch.distributed.is_initialized()


def test_what_is_no_strategy_is_refused():
    with pytest.raises(
        MisconfigurationException, match="strategy=3 is not 'auto'.* or an object of espnet3_lite.strate"
    ):
        Trainer(**QUIET, strategy=3)
    with pytest.raises(TypeError, match="find_unused"):
        DDPStrategy(find_unused=True)
    assert FSDPStrategy().name == "fsdp"


def test_an_apple_gpu_that_is_not_there_is_refused(monkeypatch):
    with pytest.raises(MisconfigurationException, match="torch finds no Apple GPU here"):
        Trainer(**{**QUIET, "accelerator": "mps"})
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MisconfigurationException, match="no collectives between processes"):
        choose_device("mps")


ALONE = {name: None for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}


@pytest.mark.parametrize(
    "given",
    [
        {"RANK": "1"},  # nobody would have logged
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "5", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},  # waited
        {"WORLD_SIZE": "two"},
    ],
)
def test_an_environment_that_torchrun_has_not_set_is_refused(given, monkeypatch):
    for name, value in {**ALONE, **given}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    with pytest.raises(MisconfigurationException, match="torchrun sets all of these or none"):
        Trainer(**QUIET)


def test_a_machine_with_one_process_may_leave_out_its_local_rank(monkeypatch):
    """As Kubernetes' PyTorchJob does, with a process in each pod."""
    given = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {**ALONE, **given, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    launch._check_environment()
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(MisconfigurationException, match="'MASTER_ADDR': None.*: torchrun sets all of these or none"):
        launch._check_environment()
    monkeypatch.setattr(launch, "is_distributed", lambda: True)  # somebody has made the group otherwise
    launch._check_environment()


@pytest.mark.parametrize("given", [{}, {"LOCAL_RANK": "0"}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "", "RANK": ""}])
def test_one_process_needs_no_environment(given, monkeypatch):
    for name, value in {**ALONE, **given}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    assert Trainer(**QUIET).world_size == 1
