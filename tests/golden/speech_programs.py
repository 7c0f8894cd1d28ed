"""What speech researchers build from public packages, on noise: ``python speech_programs.py SIDE CASE FOLDER``.

SIDE is ``lightning``, ``ours``, ``cut`` (ours, killed in mid-epoch by SIGKILL) or ``resumed`` (it goes on from there).
Run in an environment that has the packages and Lightning, by `test_speech.py`; prints what came of it as JSON. The GAN
codecs and vocoders step two optimizers by hand, in the order and with the losses of their own training scripts.
"""

import hashlib
import json
import math
import os
import signal
import sys
import warnings
from types import SimpleNamespace

warnings.filterwarnings("ignore")
SIDE, CASE, FOLDER = sys.argv[1:]
if SIDE != "lightning":
    import espnet3_lite.compat

    espnet3_lite.compat.install()

import lightning.pytorch as pl  # noqa: E402 - whose it is, was decided above
import torch  # noqa: E402

torch.set_num_threads(1)
KILLED_AT, LOSSES = 7, []
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": FOLDER}


def loaders(items):
    """Training data in random order, and the first of them for validation."""
    make = torch.utils.data.DataLoader
    return make(items, batch_size=2, shuffle=True), make(items[:4], batch_size=2)


def noise(*shape):
    """Sound-like data, the same in each run."""
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Adversarial(pl.LightningModule):
    """A generator `g` and a discriminator `d`, each with an optimizer and a schedule."""

    kind, settings = torch.optim.AdamW, {"lr": 2e-4, "betas": (0.8, 0.99)}

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def step(self, index, loss, clip=None):
        optimizer = self.optimizers()[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        if clip:
            self.clip_gradients(optimizer, gradient_clip_val=clip, gradient_clip_algorithm="norm")
        optimizer.step()
        self.lr_schedulers()[index].step()

    def configure_optimizers(self):
        optimizers = [self.kind(part.parameters(), **self.settings) for part in (self.g, self.d)]
        return optimizers, [self.schedule(optimizer) for optimizer in optimizers]

    def schedule(self, optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)


def dac():
    """descript-audio-codec: quantizer dropout, gradient clipping, its four losses."""
    import dac
    from audiotools import AudioSignal
    from dac.model.discriminator import Discriminator
    from dac.nn import loss as losses

    rate = 8000

    class Codec(Adversarial):
        def __init__(self):
            super().__init__()
            self.g = dac.DAC(
                encoder_dim=8, encoder_rates=[2, 4], decoder_dim=32, decoder_rates=[4, 2], n_codebooks=3, latent_dim=16,
                codebook_size=16, codebook_dim=4, quantizer_dropout=0.5, sample_rate=rate,
            )  # fmt: skip
            bands = [(0.0, 0.5), (0.5, 1.0)]
            self.d = Discriminator(rates=[], periods=[], fft_sizes=[128], sample_rate=rate, bands=bands)
            self.gan = losses.GANLoss(self.d)
            self.stft = losses.MultiScaleSTFTLoss(window_lengths=[256, 64])
            self.mel = losses.MelSpectrogramLoss(n_mels=[10], window_lengths=[64], mel_fmin=[0], mel_fmax=[None])

        def training_step(self, batch, batch_idx):
            sound = AudioSignal(batch, rate)
            out = self.g(sound.audio_data, rate)
            made = AudioSignal(out["audio"], rate)
            told = self.gan.discriminator_loss(made, sound)
            self.step(1, told, clip=10.0)
            adversarial, features = self.gan.generator_loss(made, sound)
            loss = 15 * self.mel(made, sound) + self.stft(made, sound) + adversarial + 2 * features
            loss = loss + 0.25 * out["vq/commitment_loss"] + out["vq/codebook_loss"]
            self.step(0, loss, clip=1e3)
            self.log_dict({"d": told, "g": loss})
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("valid", (self.g(batch, rate)["audio"] - batch).abs().mean())

    return Codec(), *loaders(noise(12, 1, 2048))


def encodec():
    """EnCodec: codebooks that k-means initialises and a moving mean trains; losses balanced at the output."""
    from encodec.model import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.msstftd import MultiScaleSTFTDiscriminator
    from encodec.quantization import ResidualVectorQuantizer

    class Codec(Adversarial):
        def __init__(self):
            super().__init__()
            shape = {"channels": 1, "norm": "weight_norm", "dimension": 16, "n_filters": 4, "ratios": [4, 2], "lstm": 1}
            quantizer = ResidualVectorQuantizer(dimension=16, n_q=4, bins=16, kmeans_init=True, kmeans_iters=3)
            self.g = EncodecModel(SEANetEncoder(**shape), SEANetDecoder(**shape), quantizer, [1.5, 3.0], 8000, 1)
            sizes = {"n_ffts": [128, 64], "hop_lengths": [32, 16], "win_lengths": [128, 64]}
            self.d = MultiScaleSTFTDiscriminator(filters=4, **sizes)

        def training_step(self, sound, batch_idx):
            codes = self.g.quantizer(self.g.encoder(sound), self.g.frame_rate, 3.0)
            made = self.g.decoder(codes.quantized)[..., : sound.shape[-1]]
            generator, discriminator = self.optimizers()
            if batch_idx % 3:  # two of three batches train the discriminator
                self.toggle_optimizer(discriminator)
                pairs = zip(self.d(sound)[0], self.d(made.detach())[0], strict=True)
                self.step(1, sum((1 - real).relu().mean() + (1 + fake).relu().mean() for real, fake in pairs))
                self.untoggle_optimizer(discriminator)
            generator.zero_grad()
            losses = {1.0: (made - sound).abs().mean(), 3.0: sum(-fake.mean() for fake in self.d(made)[0])}
            codes.penalty.mean().backward(retain_graph=True)
            gradients = {w: torch.autograd.grad(loss, made, retain_graph=True)[0] for w, loss in losses.items()}
            made.backward(sum(w * gradient / gradient.norm() for w, gradient in gradients.items()))
            generator.step()
            self.log("g/l1", losses[1.0].detach())
            return losses[1.0].detach()

        def validation_step(self, sound, batch_idx):
            self.log("valid", (self.g(sound)[..., : sound.shape[-1]] - sound).abs().mean())

    return Codec(), *loaders(noise(12, 1, 1024))


def vocos():
    """Vocos: its parts and losses, in a module of Lightning 2 (its own is one of Lightning 1)."""
    import transformers
    from vocos import discriminators, feature_extractors, heads, loss, models

    class Vocoder(Adversarial):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters()
            mel = feature_extractors.MelSpectrogramFeatures(sample_rate=24000, n_fft=256, hop_length=64, n_mels=20)
            head = heads.ISTFTHead(16, 256, 64, padding="center")
            self.g = torch.nn.Sequential(mel, models.VocosBackbone(20, 16, 32, 2), head)
            self.d = torch.nn.ModuleList([discriminators.MultiResolutionDiscriminator(fft_sizes=(256, 128))])
            self.mel = loss.MelSpecReconstructionLoss(sample_rate=24000)

        def training_step(self, sound, batch_idx):
            with torch.no_grad():
                made = self.g(sound)
            judged = [part(y=sound, y_hat=made) for part in self.d]
            told = sum(loss.DiscriminatorLoss()(real, fake)[0] / len(real) for real, fake, _, _ in judged)
            self.step(1, told)
            made = self.g(sound)
            judged = [part(y=sound, y_hat=made) for part in self.d]
            total = 45 * self.mel(made, sound)
            for _, fake, features, of_fake in judged:
                total = total + loss.GeneratorLoss()(fake)[0] / len(fake)
                total = total + loss.FeatureMatchingLoss()(features, of_fake) / len(features)
            self.step(0, total)
            self.log_dict({"discriminator": told, "generator": total}, prog_bar=True)
            return total

        def validation_step(self, sound, batch_idx):
            self.log("valid", self.mel(self.g(sound), sound))

        def schedule(self, optimizer):
            return transformers.get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=20)

    return Vocoder(), *loaders(noise(12, 2048))


def hifigan():
    """parallel_wavegan: HiFi-GAN with its RAdam; the discriminator joins in after some steps."""
    import scipy.signal

    scipy.signal.kaiser = scipy.signal.windows.kaiser  # where it was when the package was written
    from parallel_wavegan import losses, models
    from parallel_wavegan.optimizers import RAdam

    slope = {"nonlinear_activation": "LeakyReLU", "nonlinear_activation_params": {"negative_slope": 0.1}}
    common = {"in_channels": 1, "out_channels": 1, "bias": True, **slope}

    class Vocoder(Adversarial):
        kind, settings = RAdam, {"lr": 2e-4}

        def __init__(self):
            super().__init__()
            blocks = {"resblock_kernel_sizes": [3], "resblock_dilations": [[1, 3]]}
            ups = {"upsample_scales": [4, 4], "upsample_kernel_sizes": [8, 8]}
            self.g = models.HiFiGANGenerator(in_channels=8, channels=16, **ups, **blocks)
            self.d = models.HiFiGANMultiScaleMultiPeriodDiscriminator(
                scales=2, periods=[2, 3],
                scale_discriminator_params={"kernel_sizes": [15, 41, 5, 3], "channels": 8, "max_groups": 4,
                                            "max_downsample_channels": 16, "downsample_scales": [2, 1], **common},
                period_discriminator_params={"kernel_sizes": [5, 3], "channels": 4, "downsample_scales": [3, 1],
                                             "max_downsample_channels": 8, "use_spectral_norm": False, **common},
            )  # fmt: skip
            self.stft = losses.MultiResolutionSTFTLoss(fft_sizes=[128], hop_sizes=[32], win_lengths=[128])
            self.match, self.fool = losses.FeatureMatchLoss(), losses.GeneratorAdversarialLoss()
            self.judge = losses.DiscriminatorAdversarialLoss()

        def training_step(self, batch, batch_idx):
            mel, sound = batch
            made, adversarial = self.g(mel), self.global_step > 3
            loss = sum(self.stft(made, sound))
            if adversarial:
                judged = self.d(made)
                with torch.no_grad():
                    of_real = self.d(sound)
                loss = loss + 4.0 * self.fool(judged) + 2.0 * self.match(judged, of_real)
            self.step(0, loss, clip=10)
            if adversarial:
                with torch.no_grad():
                    made = self.g(mel)
                self.step(1, sum(self.judge(self.d(made.detach()), self.d(sound))))
            self.log("g", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("valid", sum(self.stft(self.g(batch[0]), batch[1])))

        def schedule(self, optimizer):
            return torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 8], 0.5)

    mels, sounds = noise(12, 8, 32), noise(12, 1, 512)
    return Vocoder(), *loaders(list(zip(mels, sounds, strict=True)))


class Line(pl.LightningModule):
    """Small: for what stands around a training."""

    def __init__(self, width=1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, width)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def dvclive():
    """DVCLive's logger, whose class is derived from a base of the trainer's and one of Fabric's."""
    from dvclive.lightning import DVCLiveLogger

    os.chdir(FOLDER)
    return Line(), *loaders(noise(12, 2)), DVCLiveLogger(save_dvc_exp=False, dir="live", log_model=True)


def nemo():
    """NeMo's `exp_manager`: loggers, its checkpoint callback, and a run that goes on by itself."""
    from nemo.utils.exp_manager import exp_manager

    trainer = pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, callbacks=callbacks(), **QUIET)
    exp_manager(trainer, {
        "exp_dir": FOLDER, "name": "run", "use_datetime_version": False, "resume_if_exists": True,
        "resume_ignore_no_checkpoint": True,
        "checkpoint_callback_params": {"monitor": "val_loss", "save_top_k": 2, "save_nemo_on_train_end": False},
    })  # fmt: skip
    return Line(), *loaders(noise(12, 2)), trainer


class Noting(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if SIDE == "cut" and len(LOSSES) == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        LOSSES.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))


def callbacks():
    """Who notes the losses."""
    return [Noting()]


os.makedirs(FOLDER, exist_ok=True)
pl.seed_everything(7)
found = SimpleNamespace(**globals()).__dict__[CASE]()
module, train, valid = found[:3]
if CASE == "nemo":
    trainer, path = found[3], None
else:
    saving = pl.callbacks.ModelCheckpoint(f"{FOLDER}/saved", save_last=True, every_n_train_steps=1)
    logger = found[3] if len(found) > 3 else False
    trainer = pl.Trainer(max_epochs=2, logger=logger, log_every_n_steps=1, callbacks=[*callbacks(), saving], **QUIET)
    path = f"{FOLDER}/saved/last.ckpt" if SIDE == "resumed" else None
trainer.fit(module, train, valid, ckpt_path=path)
whole = hashlib.sha256()
for name, value in module.state_dict().items():
    whole.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
logged = {name: value for name, value in trainer.callback_metrics.items() if "timing" not in name}  # NeMo's
metrics = {name: float(value) for name, value in logged.items()}
assert all(map(math.isfinite, LOSSES))
files = sorted(
    os.path.join(folder.removeprefix(FOLDER), name) for folder, _, names in os.walk(FOLDER) for name in names
)
found = {
    "weights": whole.hexdigest(),
    "losses": LOSSES,
    "steps": trainer.global_step,
    "metrics": metrics,
    "files": files,
}
print("RESULT", json.dumps(found))
