"""Programs in the manner of public Lightning repositories, each with what it noted.

``python lightning_repositories.py`` in an environment with Lightning 2.6.6 writes `lightning_repositories.json`. The
test has `python -m espnet3_lite.compat` change the imports of this file, and nothing else, and runs it here. What all
programs share is in `lightning_programs.py`.
"""

import copy
import json
import logging
import math
import sys
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning_programs import Base, loader, noted, rows, trainer
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

PROGRAMS = {}


def program(function):
    PROGRAMS[function.__name__] = function
    return function


@program
def vits(folder):
    """A vocoder's two steps by hand, discriminator first; rates fall once an epoch, by hand too."""

    class Vits(Base):
        def __init__(self, learning_rate=2e-2, lr_decay=0.9):
            super().__init__()
            self.save_hyperparameters()
            self.automatic_optimization = False
            self.net_d = nn.Sequential(nn.Linear(1, 4), nn.LeakyReLU(0.1), nn.Linear(4, 1))

        def training_step(self, batch, batch_idx):
            x, y = batch
            optim_g, optim_d = self.optimizers()
            fake = self.net(x)
            self.toggle_optimizer(optim_d)
            loss_d = (1 - self.net_d(y)).square().mean() + self.net_d(fake.detach()).square().mean()
            self.log("loss/d/total", loss_d, prog_bar=True)
            optim_d.zero_grad()
            self.manual_backward(loss_d)
            self.clip_gradients(optim_d, gradient_clip_val=0.7, gradient_clip_algorithm="norm")
            optim_d.step()
            self.untoggle_optimizer(optim_d)
            self.toggle_optimizer(optim_g)
            loss_gen, loss_mel = (1 - self.net_d(fake)).square().mean(), 45 * F.l1_loss(fake, y)
            self.log_dict({"loss/g/total": loss_gen + loss_mel, "loss/g/mel": loss_mel}, on_epoch=True)
            optim_g.zero_grad()
            self.manual_backward(loss_gen + loss_mel)
            optim_g.step()
            self.untoggle_optimizer(optim_g)
            if self.trainer.is_last_batch:
                for schedule in self.lr_schedulers():
                    schedule.step()
                self.log("lr", optim_g.param_groups[0]["lr"])

        def validation_step(self, batch, batch_idx):
            self.log_dict({"val/mel": F.l1_loss(self.net(batch[0]), batch[1])})

        def configure_optimizers(self):
            settings = {"lr": self.hparams.learning_rate, "betas": (0.8, 0.99), "eps": 1e-9}
            both = [torch.optim.AdamW(net.parameters(), **settings) for net in (self.net, self.net_d)]
            return both, [torch.optim.lr_scheduler.ExponentialLR(one, self.hparams.lr_decay) for one in both]

    best = ModelCheckpoint(folder, monitor="val/mel", filename="{epoch}-{step}", every_n_epochs=1, save_top_k=2)
    run = trainer(folder, best, max_epochs=3)
    run.fit(Vits(), loader(), loader(4, offset=1.0))
    run.save_checkpoint(Path(folder) / "by_hand.ckpt")
    again = trainer(folder, max_epochs=4)
    again.fit(Vits(), loader(), loader(4), ckpt_path=Path(folder) / "by_hand.ckpt")
    return again, [sorted(path.name for path in Path(folder).glob("*.ckpt")), dict(run.lightning_module.hparams),
                   [float(run.callback_metrics[name]) for name in sorted(run.callback_metrics)]]  # fmt: skip


class EMA(Callback):
    """As diffusion's repositories have it: a copy of the weights that validates and is saved instead of the model's."""

    def __init__(self, decay=0.9):
        self.decay, self.shadow, self.kept = decay, None, None

    def on_fit_start(self, trainer, pl_module):
        if self.shadow is None:
            self.shadow = copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name, value in pl_module.state_dict().items():
            self.shadow[name].mul_(self.decay).add_(value, alpha=1 - self.decay)

    def on_validation_start(self, trainer, pl_module):
        if self.shadow is not None:
            self.kept = copy.deepcopy(pl_module.state_dict())
            pl_module.load_state_dict(self.shadow)

    def on_validation_end(self, trainer, pl_module):
        if self.kept is not None:
            pl_module.load_state_dict(self.kept)
            self.kept = None

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["ema"] = self.shadow
        if self.kept is not None:
            checkpoint["state_dict"] = self.kept

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        self.shadow = checkpoint["ema"]


@program
def diffusion(folder):
    """Noise by timestep from torch's generator; the average is validated; a resume within the run."""

    class Diffusion(Base):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))
            self.register_buffer("alphas", torch.linspace(0.99, 0.1, 10))

        def on_train_batch_start(self, batch, batch_idx):
            torch.manual_seed(self.global_step)

        def loss(self, x):
            step = torch.randint(10, (len(x),), device=self.device)
            kept = self.alphas[step][:, None]
            noise = torch.randn_like(x)
            return F.mse_loss(self.net(torch.cat([kept.sqrt() * x + (1 - kept).sqrt() * noise, kept], 1)), noise)

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch[0])
            self.log("train/loss_simple", loss, prog_bar=True, logger=True, on_step=True, on_epoch=True)
            self.log("global_step", float(self.global_step), prog_bar=True, logger=True, on_step=True, on_epoch=False)
            return loss

        @torch.no_grad()
        def validation_step(self, batch, batch_idx):
            torch.manual_seed(batch_idx)
            self.log_dict({"val/loss_simple_ema": self.loss(batch[0])}, on_step=False, on_epoch=True)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 6))
            return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": 1}]

    run = trainer(folder, EMA(), max_epochs=2, num_sanity_val_steps=0, gradient_clip_val=1.0)
    run.fit(Diffusion(), loader(), loader(4))
    run.save_checkpoint(Path(folder) / "last.ckpt")
    again = trainer(folder, EMA(), max_epochs=3, num_sanity_val_steps=0, gradient_clip_val=1.0)
    again.fit(Diffusion(), loader(), loader(4), ckpt_path=Path(folder) / "last.ckpt")
    tested = again.validate(again.lightning_module, loader(4), verbose=False)
    return again, [tested, float(run.callback_metrics["val/loss_simple_ema"])]


@program
def momentum_encoder(folder):
    """MoCo: a teacher that follows the student, a queue in a buffer, a momentum that follows the whole run's steps."""

    class MoCo(Base):
        def __init__(self):
            super().__init__()
            self.teacher = copy.deepcopy(self.net)
            for parameter in self.teacher.parameters():
                parameter.requires_grad = False
            self.register_buffer("queue", torch.linspace(-1, 1, 6)[:, None])
            self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

        def momentum(self):
            done = self.global_step / self.trainer.estimated_stepping_batches
            return 1 - 0.1 * (math.cos(math.pi * done) + 1) / 2

        def on_train_batch_start(self, batch, batch_idx):
            with torch.no_grad():
                for ours, theirs in zip(self.net.parameters(), self.teacher.parameters(), strict=True):
                    theirs.mul_(self.momentum()).add_(ours, alpha=1 - self.momentum())
            self.log("momentum", self.momentum(), on_step=True, on_epoch=False)

        def training_step(self, batch, batch_idx):
            q, k = self.net(batch[0]), self.teacher(batch[0] + 0.1)
            logits = torch.cat([q * k, q @ self.queue.clone().detach().T], 1) / 0.2
            loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
            at = int(self.pointer)
            self.queue[at : at + len(k)] = k
            self.pointer[0] = (at + len(k)) % len(self.queue)
            accuracy = (logits.argmax(1) == 0).double().mean()
            self.log_dict({"loss": loss, "acc1": accuracy}, on_epoch=True, sync_dist=True, batch_size=len(q))
            return loss

        def validation_step(self, batch, batch_idx):
            return {"made": self.all_gather(self.net(batch[0]))}

        def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
            self.log("spread", outputs["made"].std(), batch_size=1)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(
                (p for p in self.parameters() if p.requires_grad), 0.3, momentum=0.9, weight_decay=1e-4
            )
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]

    run = trainer(folder, max_epochs=3)
    run.fit(MoCo(), loader(), loader(4))
    return run


@program
def prepared_data(folder):
    """A DataModule with all its methods, and the order in which they are called over fit, validate, test, predict."""

    class Corpus(pl.LightningDataModule):
        def __init__(self, root, batch_size=2):
            super().__init__()
            self.save_hyperparameters(ignore="root")
            self.root, self.said, self.epochs = Path(root), [], 0

        def prepare_data(self):
            self.said.append("prepare")
            torch.save(rows(8).tensors[0], self.root / "data.pt")

        def setup(self, stage=None):
            self.said.append(f"setup {getattr(stage, 'value', stage)}")
            x = torch.load(self.root / "data.pt")
            if stage in ("fit", "validate", None):
                self.train, self.val = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), rows(4, 0.5)
            if stage in ("test", None):
                self.test = rows(2, 1.5)

        def train_dataloader(self):
            self.said.append(f"train {self.trainer.current_epoch}")
            return DataLoader(self.train, self.hparams.batch_size)

        def val_dataloader(self):
            self.said.append("val")
            return DataLoader(self.val, self.hparams["batch_size"])

        def test_dataloader(self):
            self.said.append("test")
            return [DataLoader(self.test, 1), DataLoader(self.val, 4)]

        def predict_dataloader(self):
            return DataLoader(rows(3), batch_size=2)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 2, batch[1]]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] / 2, batch[1] + dataloader_idx]

        def teardown(self, stage):
            self.said.append(f"teardown {getattr(stage, 'value', stage)}")

        def state_dict(self):
            return {"epochs": self.epochs, "seen": len(self.said)}

        def load_state_dict(self, state):
            self.said.append(f"loaded {state}")

    class Tested(Base):
        def on_train_epoch_end(self):
            self.trainer.datamodule.epochs += 1

        def test_step(self, batch, batch_idx, dataloader_idx):
            self.log("test_loss", F.mse_loss(self(batch[0]), batch[1]))

        def predict_step(self, batch, batch_idx):
            return self(batch[0])

    run, data, module = trainer(folder, reload_dataloaders_every_n_epochs=1), Corpus(folder), Tested()
    run.fit(module, datamodule=data)
    run.save_checkpoint(Path(folder) / "a.ckpt")
    results = [run.validate(module, data, verbose=False), run.test(module, datamodule=data, verbose=False)]
    made = [part.tolist() for part in run.predict(module, data)]
    other = Corpus(folder, batch_size=4)
    again = trainer(folder, max_epochs=3)
    again.fit(Tested(), datamodule=other, ckpt_path=f"{folder}/a.ckpt")
    return again, [data.said, results, made, other.said, again.num_training_batches, again.num_val_batches]


class ByLength(Sampler):
    """Samples of similar length together, shuffled by epoch: a sampler of one's own."""

    def __init__(self, lengths, together):
        self.lengths, self.together, self.epoch, self.told = lengths, together, 0, []

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.told.append(epoch)

    def __iter__(self):
        order = sorted(range(len(self.lengths)), key=lambda index: self.lengths[index])
        groups = [order[start : start + self.together] for start in range(0, len(order), self.together)]
        generator = torch.Generator().manual_seed(self.epoch)
        for group in torch.randperm(len(groups), generator=generator):
            yield from groups[group]

    def __len__(self):
        return len(self.lengths)


@program
def samplers(folder):
    """A sampler of one's own, which is told the epoch, and one within torch's `BatchSampler` to validate."""

    class Backwards(Sampler):
        def __init__(self, source):
            self.source = source

        def __iter__(self):
            return iter(range(len(self.source) - 1, -1, -1))

        def __len__(self):
            return len(self.source)

    class Noted(Base):
        def training_step(self, batch, batch_idx):
            self.log("first", batch[0][0, 0])
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.log("val_first", batch[0][0, 0], on_step=True, on_epoch=True, batch_size=1)
            super().validation_step(batch, batch_idx)

    by_length, data = ByLength([3, 1, 2, 5, 4, 9, 7, 8], 3), rows(8)
    run = trainer(folder, max_epochs=3, use_distributed_sampler=False, limit_val_batches=2)
    val = DataLoader(rows(5), batch_sampler=BatchSampler(Backwards(rows(5)), 2, drop_last=False))
    run.fit(Noted(), DataLoader(data, batch_size=3, sampler=by_length, drop_last=True), val)
    return run, [by_length.told, run.num_training_batches, run.num_val_batches, run.estimated_stepping_batches]


@program
def logger_of_ones_own(folder):
    """A logger with all that the base class lets it hear."""

    class Told(Logger):
        def __init__(self):
            super().__init__()
            self.rows = []

        @property
        def name(self):
            return "told"

        @property
        def version(self):
            return "first"

        @property
        def experiment(self):
            return self

        def add_scalar(self, name, value, step):
            self.rows.append([name, float(value), step])

        @rank_zero_only
        def log_hyperparams(self, params, *args, **kwargs):
            self.rows.append(["hyperparams", {key: params[key] for key in sorted(params)}])

        @rank_zero_only
        def log_metrics(self, metrics, step):
            self.rows.append([step, {name: float(value) for name, value in metrics.items()}])

        def after_save_checkpoint(self, checkpoint_callback):
            self.rows.append(["saved", Path(checkpoint_callback.last_model_path or "none").name])

        @rank_zero_only
        def save(self):
            super().save()

        @rank_zero_only
        def finalize(self, status):
            self.rows.append(["finalize", status])

    class Speaking(Base):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()

        def on_after_backward(self):
            if self.trainer.global_step % 3 == 0:
                for name, parameter in self.named_parameters():
                    self.logger.experiment.add_scalar(f"grad/{name}", parameter.grad.norm(), self.global_step)

    saving = ModelCheckpoint(monitor="val_loss", save_last=True)
    run = trainer(folder, saving, logger=Told(), log_every_n_steps=2)
    run.fit(Speaking(), loader(), loader(4))
    return run, str(Path(saving.dirpath).relative_to(folder))


@program
def several_validation_loaders(folder):
    """Clean and noisy sets; one name for both, and a name of each."""

    class Two(Base):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            loss = F.mse_loss(self(batch[0]), batch[1])
            name = ("clean", "noisy")[dataloader_idx]
            self.log(f"val/{name}", loss, add_dataloader_idx=False, batch_size=len(batch[0]))
            self.log("val/loss", loss, prog_bar=True, on_step=True, on_epoch=True)
            return loss

        def on_validation_epoch_end(self):
            clean, noisy = (float(self.trainer.callback_metrics.get(f"val/{name}", -1)) for name in ("clean", "noisy"))
            self.log("val/seen", clean + noisy)

    best = ModelCheckpoint(folder, monitor="val/loss/dataloader_idx_1", filename="best-{epoch}", save_top_k=1)
    run = trainer(folder, best, max_epochs=3, val_check_interval=2)
    run.fit(Two(), loader(), [loader(4), loader(6, 4, offset=1.0)])
    results = run.validate(run.lightning_module, [loader(4), loader(6, 4, offset=1.0)], verbose=False)
    return run, [Path(best.best_model_path).name, results, run.num_val_batches]


@program
def predictions_to_files(folder):
    """A writer of one's own, with and without what `predict` gives back."""

    class Writer(BasePredictionWriter):
        def __init__(self, interval):
            super().__init__(interval)
            self.said = []

        def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
            self.said.append([prediction.sum().item(), batch_indices, len(batch[0]), batch_idx, dataloader_idx])

        def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
            sizes = [len(part) if isinstance(part, list) else list(part.shape) for part in predictions]
            self.said.append([sizes, batch_indices])

    class Predicting(Base):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return self(batch[0])

    said = []
    for interval, given in {"batch": loader(5), "epoch": loader(5), "batch_and_epoch": [loader(4), loader(3)]}.items():
        writer = Writer(interval)
        run, module = trainer(folder, writer), Predicting()
        torch.manual_seed(1)
        module = Predicting()
        made = run.predict(module, given, return_predictions=interval != "batch")
        said.append([writer.said, made is None or len(made)])
    return run, said


@program
def distillation(folder):
    """A teacher that is in no checkpoint, `configure_callbacks`, `configure_model`, and weights loaded without it."""

    class Student(Base):
        strict_loading = False

        def __init__(self, temperature=2.0):
            super().__init__()
            self.save_hyperparameters()
            self.teacher, self.head = nn.Linear(2, 1), None
            self.teacher.requires_grad_(False)

        def configure_model(self):
            if self.head is None:
                self.head = nn.Linear(1, 1)

        def configure_callbacks(self):
            return [EarlyStopping("val_loss", patience=1, mode="max")]

        def training_step(self, batch, batch_idx):
            made = self.head(self(batch[0]))
            with torch.no_grad():
                wanted = self.teacher(batch[0])
            loss = F.mse_loss(made / self.hparams.temperature, wanted / self.hparams.temperature)
            self.log("kd", loss, on_step=False, on_epoch=True)
            return {"loss": loss, "made": made.detach()}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.log("made", outputs["made"].mean())

        def state_dict(self):
            return {key: value for key, value in super().state_dict().items() if not key.startswith("teacher")}

        def configure_optimizers(self):
            groups = [{"params": self.net.parameters()}, {"params": self.head.parameters(), "lr": 0.2}]
            return {"optimizer": torch.optim.SGD(groups, lr=0.1)}

    saving = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=3, save_weights_only=True)
    run = trainer(folder, saving, max_epochs=5)
    run.fit(Student(), loader(), loader(4))
    names = sorted(path.name for path in Path(folder).glob("*.ckpt"))
    again = Student.load_from_checkpoint(Path(folder) / names[0], temperature=3.0)
    return run, [names, again.hparams.temperature, sorted(again.state_dict()), again.net[0].weight.tolist()]


class Stream(IterableDataset):
    def __iter__(self):
        yield from rows(7)


@program
def steps_over_a_stream(folder):
    """No epochs, only steps: a stream without a length, validation by training batches, checkpoints by steps."""

    class Stepped(Base):
        def training_step(self, batch, batch_idx):
            if self.global_step == 8:
                self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    saving = ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=2, monitor="step", mode="max")
    run = trainer(
        folder, saving, max_epochs=-1, max_steps=12, val_check_interval=3, check_val_every_n_epoch=None, min_steps=5
    )
    run.fit(Stepped(), DataLoader(Stream(), batch_size=1), loader(4))
    return run, sorted(path.name for path in Path(folder).glob("*.ckpt"))


@program
def finetuning(folder):
    """A frozen backbone that joins later, clipping, fractions of the data; best weights tested at the end."""

    class Tuned(Base):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Linear(2, 3), nn.Linear(3, 1)
            del self.net

        def forward(self, x):
            return self.head(self.backbone(x).tanh())

        def test_step(self, batch, batch_idx):
            self.log("test_loss", F.mse_loss(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=0.05)
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    best = ModelCheckpoint(folder, monitor="val_loss", filename="{epoch:02d}", save_last="link")
    tuning = pl.callbacks.BackboneFinetuning(2, lambda epoch: 1.5, backbone_initial_ratio_lr=0.1, verbose=False)
    run = trainer(folder, best, tuning, max_epochs=4, limit_train_batches=0.5, limit_val_batches=1, gradient_clip_val=1)
    run.fit(Tuned(), loader(), loader(4))
    return run, [run.test(run.lightning_module, loader(3), ckpt_path="best", verbose=False),
                 [[group["lr"] for group in optimizer.param_groups] for optimizer in run.optimizers],
                 sorted(path.name for path in Path(folder).glob("*.ckpt"))]  # fmt: skip


@program
def folds(folder):
    """Cross-validation with one set of callbacks, and a run that is prolonged by a second `fit`."""
    scores, stopping = [], EarlyStopping("val_loss", patience=1)
    for fold in range(2):
        torch.manual_seed(fold)
        run = trainer(folder, stopping, max_epochs=2)
        run.fit(Base(), loader(8, offset=fold), loader(4, offset=-fold))
        scores.append([float(run.callback_metrics["val_loss"]), stopping.wait_count])
    run.fit_loop.max_epochs = 4
    run.fit(run.lightning_module, loader(8), loader(4))
    return run, scores


@program
def second_order(folder):
    """LBFGS, with a schedule by steps, over the same two batches for training and validation."""

    class Newton(Base):
        def configure_optimizers(self):
            optimizer = torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=3)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
            return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": 2}]

    run = trainer(folder, max_epochs=3, overfit_batches=2)
    run.fit(Newton(), loader(), loader())
    return run, run.optimizers[0].param_groups[0]["lr"]


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = {}
    for chosen in sys.argv[1:] or PROGRAMS:
        with tempfile.TemporaryDirectory() as place:
            found[chosen] = noted(PROGRAMS[chosen], place)
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")
    print(len(found), "programs")
