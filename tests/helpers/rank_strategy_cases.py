"""What strategies do, as users meet them. As in `rank_cases`, each function is a case, for one process and for several.

`rank_launch` runs them on two ranks.
"""

import warnings

import torch
import torch.distributed as dist
from rank_alone_cases import Line, error_of
from rank_cases import rank_and_size, share
from rank_lab import Model, Module, loader_of, several, trainer_of, write_results

from espnet3_lite import Callback, LiteModule, OptimizationStep
from espnet3_lite.callbacks import MetricsLogger, ProgressBar
from espnet3_lite.strategies import DDPStrategy, FSDPStrategy

RANK, SIZE = rank_and_size()


# ---- optimizers that decide by the loss ------------------------------------------------------------------------------


class ByClosure(Line):
    """LBFGS, stepped by the loop or by hand."""

    def __init__(self, by_hand, line_search):
        super().__init__()
        self.automatic_optimization, self.line_search = not by_hand, line_search
        self.evaluations = 0

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            self.evaluations += 1
            return self.loss(batch, "training_step")
        optimizer = self.optimizers()

        def closure():
            self.evaluations += 1
            optimizer.zero_grad()
            loss = self.loss(batch, "training_step")
            self.manual_backward(loss)
            return loss

        optimizer.step(closure)

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=1.0, max_iter=6, line_search_fn=self.line_search)


def lbfgs():
    found = {}
    for by_hand in (False, True):
        for line_search in (None, "strong_wolfe"):
            module = ByClosure(by_hand, line_search)
            trainer_of(max_epochs=2).fit(module, loader_of(16, share(8), False))
            found[f"by_hand={by_hand}, {line_search}"] = [module.numbers(), module.evaluations]
    return found


# ---- batch norm over the ranks ---------------------------------------------------------------------------------------


class Normalized(Line):
    """Has a SyncBatchNorm, whose statistics a forward pass changes; torch runs one on GPUs alone."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.SyncBatchNorm(3, affine=False).double()
        self.seen = 0

    def training_step(self, batch, batch_idx):
        self.seen += 1
        with torch.no_grad():
            self.norm.running_mean += 1
        return super().training_step(batch, batch_idx)


def synchronized_norm():
    """Five samples in batches of one: in the third step rank 1 has none. On a CPU DDP itself would refuse the layer."""
    module = Normalized()
    torch.nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer_of(max_epochs=1)
        trainer.fit(module, loader_of(5, 1, False))
    told = [str(warning.message) for warning in caught if "SyncBatchNorm" in str(warning.message)]
    return {"steps": trainer.global_step, "mean": module.norm.running_mean.tolist(), "told": told}


def synchronized_on_a_cpu():
    module = Line()
    module.norm = torch.nn.BatchNorm1d(3, affine=False).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(max_epochs=1, sync_batchnorm=True).fit(module, loader_of(4, 1, False))
    told = [str(warning.message) for warning in caught if "sync_batchnorm" in str(warning.message)]
    return {"kind": type(module.norm).__name__, "told": told}


class Shortened(Line):
    """Has embeddings whose forward pass changes their weight, as much as each rank's batch asks for."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(8, 2, max_norm=0.1).double()

    def training_step(self, batch, batch_idx):
        rows = self.words(torch.tensor([RANK]))
        return super().training_step(batch, batch_idx) + 0 * rows.sum()


def shortened_embeddings():
    module = Shortened()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(max_epochs=1).fit(module, loader_of(4, 1, False))
    told = [str(warning.message) for warning in caught if "weights" in str(warning.message)]
    return {"weight": module.words.weight.tolist(), "told": told}


class OnOneRank(Line):
    """Changes a weight on rank zero, once."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.is_global_zero and self.trainer.global_step == 1:
            with torch.no_grad():
                next(self.parameters()).add_(1.0)


def weights_of_one_rank():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(max_epochs=1).fit(OnOneRank(), loader_of(4, 1, False))
        trainer_of(max_epochs=1).fit(Line(), loader_of(4, 1, False))
    return [str(warning.message) for warning in caught if "weights" in str(warning.message)]


# ---- objects and what users ask them ---------------------------------------------------------------------------------


class Asking(Line):
    """Asks the strategy within a training step."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 0 and self.trainer.current_epoch == 0:
            strategy = self.trainer.strategy
            factor = torch.tensor([RANK + 2.0], dtype=torch.float64, requires_grad=True)
            everyone = self.all_gather({"factor": factor, "number": RANK}, sync_grads=True)
            everyone["factor"].sum().mul(3.0).backward()
            self.answers = {
                "reduced": [float(strategy.reduce(torch.tensor(RANK + 1.0), reduce_op=how)) for how in ("mean", "sum")],
                "broadcast": strategy.broadcast({"rank": RANK}, src=1),
                "gathered": [everyone["factor"].tolist(), everyone["number"].tolist()],
                "gradient": factor.grad.tolist(),
                "device": str(strategy.root_device),
                "zero": strategy.is_global_zero,
                "model": type(strategy.model).__name__,
                "ranks": [strategy.global_rank, strategy.local_rank, strategy.world_size, self.trainer.node_rank],
                "trainer": [self.trainer.device_ids, self.trainer.received_sigterm],
                "sampler": self.trainer.distributed_sampler_kwargs,
            }
            strategy.barrier("here")
        return super().training_step(batch, batch_idx)


class Unused(Asking):
    """A parameter that no loss reaches."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.ones(2).double())


def objects():
    """An object of `strategies`; without its argument DDP would wait for the unused parameter's gradient."""
    module = Unused()
    strategy = DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True, bucket_cap_mb=1)
    trainer = trainer_of(max_epochs=2, strategy=strategy)
    trainer.fit(module, loader_of(8, share(2), False))
    return {"same": trainer.strategy is strategy, "numbers": module.numbers(), "answers": module.answers}


def half():
    """``bf16-true``: parameters, batches and what the step creates."""
    kinds = {}

    class Half(Line):
        def training_step(self, batch, batch_idx):
            kinds.update(
                batch=str(batch[1]["x"].dtype), made=str(torch.zeros(1).dtype), weight=str(self.layer.weight.dtype)
            )
            return super().training_step(batch, batch_idx)

    trainer_of(precision="bf16-true", max_epochs=1).fit(Half(), loader_of(4, 1, False))
    return kinds


# ---- gradients on their way ------------------------------------------------------------------------------------------


class Looks(Callback):
    """Whether an optimizer's gradients after its backward pass are those that it steps with."""

    def __init__(self):
        self.seen, self.same = [], []

    def on_after_backward(self, trainer, pl_module):
        _, slot = trainer.fit_loop.work.losses[len(self.seen)]
        self.seen.append([(p, p.grad.clone()) for p in slot.parameters])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.same += [all(torch.equal(p.grad, gradient) for p, gradient in of_one) for of_one in self.seen]
        self.seen = []


class LooksAlone(Looks, ProgressBar):
    """Each rank may have bars of its own."""


class AddsOne(Callback):
    """On rank 1 alone, in the second batch of two."""

    def __init__(self):
        self.looks = Looks()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if RANK == batch_idx == 1:
            trainer.callbacks.append(self.looks)


def travelling():
    """Whether the messages of named optimizers are sent within a backward pass, and what they hold: by who listens."""
    found, original = {}, dist.all_reduce
    alone, added = LooksAlone(), AddsOne()
    for name, lists, callbacks in (
        ("nobody", [["second", "first"], ["first"]], []),
        ("looks at no gradients", [["second", "first"]] * 2, [MetricsLogger()]),
        ("one rank", [["second", "first"]] * 2, [alone] * RANK),
        ("one rank later", [["second", "first"]] * 2, [added]),
    ):
        sent = []

        def noted(tensor, *args, sent=sent, **kwargs):
            sent.append([torch._C._current_graph_task_id() != -1, tensor.numel()])
            return original(tensor, *args, **kwargs)

        module = Module(Model(lists), several())
        dist.all_reduce = noted
        settings = {"callbacks": callbacks, "enable_progress_bar": name == "one rank"}
        trainer_of(max_epochs=1, **settings).fit(module, loader_of(8, 2, False))
        dist.all_reduce = original
        first = module.model.first.weight.grad
        found[name] = {"sent": sent, "is_a_view": first is not None and first._is_view()}
    return {**found, "same": [alone.same, added.looks.same]}


class Halves(LiteModule):
    """Named optimizers of the module's own making, with a part that both have, and one that is frozen for a while."""

    def __init__(self, shares):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.second, self.common = (torch.nn.Linear(3, 1).double() for _ in range(3))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        self.shares, self.named_optimizers = shares, {"second": {"window": 2}, "first": {}}

    def configure_optimizers(self):
        shared = [*self.common.parameters()] * self.shares
        parts = ([*self.first.parameters(), *shared], [*shared, *self.second.parameters()])
        return [torch.optim.SGD(parameters, lr=0.1, momentum=0.5) for parameters in parts[::-1]]

    def training_step(self, batch, batch_idx):
        vars(self)["batch_weight"] = torch.tensor(len(batch[0]))
        frozen = not self.shares and self.trainer.fit_loop.batches_seen in (2, 3, 4)
        self.second.requires_grad_(not frozen)
        x, y = batch[1]["x"], batch[1]["y"]
        made = {name: getattr(self, name)(x) + self.common(x) for name in ("second", "first")[frozen:]}
        return [OptimizationStep((out.squeeze(1) - y).square().mean(), name) for name, out in made.items()]


def halves(shares):
    module = Halves(shares)
    trainer_of(max_epochs=2).fit(module, loader_of(24, share(4), False))
    return [parameter.flatten().tolist() for parameter in module.parameters()]


def shared_by_optimizers():
    return halves(True)


def frozen_with_a_gradient():
    return halves(False)


# ---- FSDP2 -----------------------------------------------------------------------------------------------------------


class Later(Line):
    """Two layers in a list, the last one on the meta device until `configure_model` is over."""

    def __init__(self, meta):
        super().__init__()
        torch.manual_seed(3)
        self.layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(3, 3).double()) for _ in range(2)])
        self.meta, self.predicted = meta, []

    def configure_model(self):
        if self.meta == "whole":
            self.layers.to("meta")
        if self.meta == "no values" and not hasattr(self, "bare"):
            self.bare = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(2, device="meta"))])

    def loss(self, batch, hook):
        x = batch[1]["x"].to(self.layer.weight.dtype)
        for layer in self.layers:
            x = layer(x)
        return (self.layer(x).squeeze(1) - batch[1]["y"]).square().mean()

    def predict_step(self, batch, batch_idx):
        return float(self.loss(batch, "predict_step"))


def sharded():
    """Trained and predicted; on the meta device (whose values differ from run to run, but not from rank to rank)."""
    strategy = FSDPStrategy(reshard_after_forward=False)
    module = Later(None)
    trainer = trainer_of(strategy=strategy, max_epochs=1)
    trainer.fit(module, loader_of(8, share(2), False))
    predicted = trainer.predict(module, loader_of(4, share(2), False))
    torch.manual_seed(5 + RANK)
    later = Later("whole")
    trainer_of(strategy="fsdp", max_epochs=1).fit(later, loader_of(8, share(2), False))
    whole = [parameter.full_tensor().flatten().tolist() for parameter in later.layers.parameters()]
    mixed = Later(None).float()
    trainer_of(strategy="fsdp", max_epochs=1, precision="bf16-mixed").fit(mixed, loader_of(8, share(2), False))
    policy = mixed._get_fsdp_state()._mp_policy
    return {
        "same": trainer.strategy is strategy,
        "predicted": predicted,
        "meta": [whole, [str(parameter.device) for parameter in later.parameters()]],
        "refused": error_of(lambda: trainer_of(strategy="fsdp").fit(Later("no values"), loader_of(8, share(2), False))),
        "policy": [str(policy.param_dtype), str(policy.reduce_dtype)],
        "mixed": [str(parameter.dtype) for parameter in mixed.parameters()],
    }


def main(folder, *names):
    write_results(folder, {name: globals()[name]() for name in names})
