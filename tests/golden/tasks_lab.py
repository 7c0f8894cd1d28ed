"""Small models of espnet's tasks, trained for two epochs of three batches: ``tasks_lab.py OUTPUT [CASE...]``.

Run in an environment with espnet; started by ``test_tasks.py``. Each model is built by its ``task:`` or its
``_target_``, trained as a whole, and once more from a checkpoint within the second epoch. A line of JSON for each case:
how many steps, which values were logged, and in which parameters the resumed run ended differently.
"""

import json
import sys
import tempfile
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[1] / "reference" / "tools"))

TOKENS = ["<blank>", "<unk>", "a", "b", "c", "d", "<sos/eos>"]
SPECIAL = ["<blank>", "<unk>", "<na>", "<nospeech>", "<en>", "<asr>", "<notimestamps>", "<sop>", "<sos>", "<eos>"]
TIMES = ["<0.00>", "<30.00>"]
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.001}
TRANSFORMER = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 1}
DECODER = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
FRONTEND = {"frontend": "default", "frontend_conf": {"n_fft": 64, "hop_length": 32, "n_mels": 8}}
SPECTROGRAM = {"n_fft": 64, "hop_length": 16, "win_length": None}
PERIODS = {
    "scales": 1, "periods": [2],
    "scale_discriminator_params": {
        "in_channels": 1, "out_channels": 1, "kernel_sizes": [15, 41, 5, 3], "channels": 4,
        "max_downsample_channels": 8, "max_groups": 2, "bias": True, "downsample_scales": [2, 1],
        "nonlinear_activation": "LeakyReLU", "nonlinear_activation_params": {"negative_slope": 0.1},
    },
    "period_discriminator_params": {
        "in_channels": 1, "out_channels": 1, "kernel_sizes": [5, 3], "channels": 2, "downsample_scales": [3, 1],
        "max_downsample_channels": 4, "bias": True, "nonlinear_activation": "LeakyReLU",
        "nonlinear_activation_params": {"negative_slope": 0.1}, "use_weight_norm": True, "use_spectral_norm": False,
    },
}  # fmt: skip
ENCODEC = {
    "hidden_dim": 8, "encdec_channels": 1, "encdec_n_filters": 2, "encdec_n_residual_layers": 1,
    "encdec_ratios": [8, 4], "encdec_activation": "ELU", "encdec_activation_params": {"alpha": 1.0},
    "encdec_norm": "weight_norm", "encdec_norm_params": {}, "encdec_kernel_size": 7, "encdec_residual_kernel_size": 7,
    "encdec_last_kernel_size": 7, "encdec_dilation_base": 2, "encdec_causal": False, "encdec_pad_mode": "reflect",
    "encdec_true_skip": False, "encdec_compress": 2, "encdec_lstm": 1, "decoder_trim_right_ratio": 1.0,
    "decoder_final_activation": None, "decoder_final_activation_params": None, "quantizer_n_q": 2, "quantizer_bins": 8,
    "quantizer_decay": 0.99, "quantizer_kmeans_init": True, "quantizer_kmeans_iters": 3,
    "quantizer_threshold_ema_dead_code": 2, "quantizer_target_bandwidth": [1, 2],
}  # fmt: skip
SOUNDSTREAM_JUDGES = {
    "scales": 1, "scale_downsample_pooling": "AvgPool1d",
    "scale_downsample_pooling_params": {"kernel_size": 4, "stride": 2, "padding": 2},
    "scale_discriminator_params": PERIODS["scale_discriminator_params"], "scale_follow_official_norm": False,
    "complexstft_discriminator_params": {
        "in_channels": 1, "channels": 2, "strides": [[1, 2], [2, 2]], "chan_mults": [1, 2], "n_fft": 64,
        "hop_length": 16, "win_length": 64, "stft_normalized": False, "logits_abs": True,
    },
}  # fmt: skip

#: A case's configuration: ``task`` and ``model``, and what `batches` makes.
CASES = {
    "asr": ("espnet2.tasks.asr.ASRTask", {
        "token_list": TOKENS, **FRONTEND, "encoder": "transformer", "encoder_conf": TRANSFORMER,
        "decoder": "transformer", "decoder_conf": DECODER, "normalize": "utterance_mvn",
    }, "speech text"),
    "asr_transducer": ("espnet2.tasks.asr_transducer.ASRTransducerTask", {
        "token_list": TOKENS, **FRONTEND, "normalize": "utterance_mvn",
        "encoder_conf": {"body_conf": [{"block_type": "conformer", "hidden_size": 8, "linear_size": 8, "heads": 2,
                                        "conv_mod_kernel_size": 3}]},
        "decoder": "rnn", "decoder_conf": {"embed_size": 4, "hidden_size": 4},
        "joint_network_conf": {"joint_space_size": 4},
    }, "speech text"),
    "s2t": ("espnet2.tasks.s2t.S2TTask", {
        "token_list": [*SPECIAL[:-3], *TIMES, "a", "b", "c", *SPECIAL[-3:]], **FRONTEND, "encoder": "transformer",
        "encoder_conf": TRANSFORMER, "decoder": "transformer", "decoder_conf": DECODER, "normalize": "utterance_mvn",
        "model_conf": {"sym_na": "<na>"},
    }, "speech text text_prev text_ctc"),
    "st": ("espnet2.tasks.st.STTask", {
        "token_list": TOKENS, "src_token_list": TOKENS, **FRONTEND, "encoder": "transformer",
        "encoder_conf": TRANSFORMER, "decoder": "transformer", "decoder_conf": DECODER, "normalize": "utterance_mvn",
        "extra_asr_decoder": "transformer", "extra_asr_decoder_conf": DECODER,
        "model_conf": {"asr_weight": 0.3, "mtlalpha": 0.5},
    }, "speech text src_text"),
    "lm": ("espnet2.tasks.lm.LMTask", {
        "token_list": TOKENS, "lm": "transformer",
        "lm_conf": {"embed_unit": 8, "att_unit": 8, "head": 2, "unit": 8, "layer": 1},
    }, "text"),
    "tts_tacotron2": ("espnet2.tasks.tts.TTSTask", {
        "token_list": TOKENS, "feats_extract": "fbank", "normalize": None,
        "feats_extract_conf": {"n_fft": 256, "hop_length": 128, "win_length": None, "n_mels": 8, "fs": 16000},
        "tts": "tacotron2", "tts_conf": {
            "embed_dim": 8, "econv_layers": 1, "econv_chans": 8, "econv_filts": 5, "eunits": 8, "adim": 8,
            "aconv_chans": 4, "dlayers": 1, "dunits": 8, "prenet_layers": 1, "prenet_units": 8, "postnet_layers": 1,
            "postnet_chans": 8, "use_guided_attn_loss": True,
        },
    }, "speech text"),
    "tts_transformer": ("espnet2.tasks.tts.TTSTask", {
        "token_list": TOKENS, "feats_extract": "fbank", "normalize": None,
        "feats_extract_conf": {"n_fft": 256, "hop_length": 128, "win_length": None, "n_mels": 8, "fs": 16000},
        "tts": "transformer", "tts_conf": {
            "adim": 8, "aheads": 2, "elayers": 1, "eunits": 8, "dlayers": 1, "dunits": 8, "embed_dim": 8,
            "eprenet_conv_layers": 1, "eprenet_conv_chans": 8, "dprenet_layers": 1, "dprenet_units": 8,
            "postnet_layers": 1, "postnet_chans": 8, "num_heads_applied_guided_attn": 1,
            "num_layers_applied_guided_attn": 1,
        },
    }, "speech text"),
    "enh": ("espnet2.tasks.enh.EnhancementTask", {
        "encoder": "stft", "encoder_conf": {"n_fft": 64, "hop_length": 32}, "decoder": "stft",
        "decoder_conf": {"n_fft": 64, "hop_length": 32}, "separator": "rnn",
        "separator_conf": {"num_spk": 2, "layer": 1, "unit": 8},
        "criterions": [{"name": "snr", "conf": {}, "wrapper": "pit", "wrapper_conf": {"weight": 1.0}}],
    }, "speech_mix speech_ref1 speech_ref2"),
    "ssl": ("espnet2.tasks.ssl.SSLTask", {
        "token_list": ["0", "1", "2", "3"], **FRONTEND, "encoder": "transformer",
        "encoder_conf": {**TRANSFORMER, "input_layer": "linear"}, "normalize": "utterance_mvn", "preencoder": None,
        "loss": [{"name": "hubert", "conf": {"num_classes": 4, "final_dim": 4}}],
    }, "speech units"),
    "spk": ("espnet2.tasks.spk.SpeakerTask", {
        "spk_num": 3, "frontend": "melspec_torch", "frontend_conf": {"n_mels": 8}, "encoder": "ecapa_tdnn",
        "encoder_conf": {"model_scale": 2, "ndim": 8, "output_size": 8}, "pooling": "chn_attn_stat",
        "projector": "rawnet3", "projector_conf": {"output_size": 4}, "loss": "aamsoftmax",
        "loss_conf": {"margin": 0.3, "scale": 30}, "normalize": None,
    }, "speech spk_labels"),
    "gan_tts_vits": ("espnet2.tasks.gan_tts.GANTTSTask", {
        "token_list": TOKENS, "feats_extract": "linear_spectrogram", "feats_extract_conf": SPECTROGRAM,
        "normalize": None, "tts": "vits", "tts_conf": {
            "sampling_rate": 16000, "cache_generator_outputs": True, "generator_params": {
                "hidden_channels": 8, "segment_size": 8, "text_encoder_blocks": 1, "decoder_channels": 8,
                "decoder_upsample_scales": [4, 4], "decoder_upsample_kernel_sizes": [8, 8],
                "decoder_resblock_kernel_sizes": [3], "decoder_resblock_dilations": [[1, 3]],
                "posterior_encoder_layers": 2, "flow_flows": 2, "flow_layers": 1,
                "stochastic_duration_predictor_flows": 2, "stochastic_duration_predictor_dds_conv_layers": 1,
            },
            "discriminator_params": PERIODS,
            "mel_loss_params": {"fs": 16000, "n_fft": 64, "hop_length": 16, "win_length": None, "window": "hann",
                                "n_mels": 8, "fmin": 0, "fmax": None, "log_base": None},
        },
    }, "speech text"),
    "gan_codec_soundstream": ("espnet2.tasks.gan_codec.GANCodecTask", {
        "codec": "soundstream", "codec_conf": {
            "sampling_rate": 16000, "generator_params": ENCODEC, "discriminator_params": SOUNDSTREAM_JUDGES,
            "cache_generator_outputs": True,
            "mel_loss_params": {"fs": 16000, "range_start": 6, "range_end": 7, "window": "hann", "n_mels": 8, "fmin": 0,
                                "fmax": None, "log_base": None},
        },
    }, "audio"),
    "f5tts": ("espnet3.systems.f5tts.src.f5tts.F5TTS", {
        "token_list": TOKENS, "hidden_size": 16, "depth": 1, "attention_heads": 2, "attention_head_size": 8,
        "text_embedding_size": 8, "convolution_layers": 1,
    }, "speech text"),
}  # fmt: skip


def batches(names):
    """Three batches of two utterances."""
    seed = torch.Generator().manual_seed(9)

    def text(high=5):
        return torch.randint(2, high, (2, 5), generator=seed)

    made = []
    for number in range(3):
        batch = {}
        for name in names.split():
            if name == "spk_labels":
                batch[name] = torch.randint(0, 3, (2,), generator=seed)
                continue
            if name in ("text", "src_text", "text_prev", "text_ctc"):
                batch[name], lengths = text(), [5, 4]
            elif name == "units":
                name = "text"
                batch[name], lengths = torch.randint(0, 3, (2, 129), generator=seed), [129, 110]
            else:
                longest = 1024 if name == "audio" else 4096
                batch[name], lengths = torch.randn(2, longest, generator=seed) * 0.1, [longest, longest - 500]
            batch[f"{name}_lengths"] = torch.tensor(lengths)
        made.append(([f"{number}_0", f"{number}_1"], batch))
    return made


def module_for(task, model):
    from espnet3_lite.config import Config
    from espnet3_lite.espnet import experiment
    from espnet3_lite.espnet.gan import module_of

    torch.manual_seed(4)
    gan = ".gan_" in task
    names = {"generator": {"params": "generator"}, "discriminator": {"params": "discriminator"}}
    config = {
        **({"task": task, "model": model} if ".tasks." in task else {"model": {"_target_": task, **model}}),
        **({"optimizers": {name: {**rest, "optimizer": ADAM} for name, rest in names.items()}} if gan else
           {"optimizer": ADAM}),
        "trainer": {"gan": {}} if gan else {},
    }  # fmt: skip
    config = Config.create(config)
    return module_of(experiment.build_model(config), config)


def try_one(task, model, names):
    from quiet import quiet_trainer

    from espnet3_lite import Callback, seed_everything
    from espnet3_lite.espnet.import_aliases import espnet_stand_ins

    data = batches(names)

    class Saves(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:  # within the second epoch
                trainer.save_checkpoint(file)

    def fit(**resume):
        seed_everything(1, verbose=False)
        trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=[] if resume else [Saves()])
        trainer.fit(module_for(task, model), data, data[:1], **resume)
        return trainer

    with espnet_stand_ins(), tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/cut.ckpt"
        whole = fit()
        resumed = fit(ckpt_path=file)
        cut = torch.load(file, weights_only=True)["state_dict"]
    end, other = whole.lightning_module.state_dict(), resumed.lightning_module.state_dict()
    return {
        "steps": [whole.global_step, resumed.global_step], "metrics": sorted(whole.callback_metrics),
        "finite": all(bool(torch.isfinite(value)) for value in whole.callback_metrics.values()),
        "differ": [name for name in end if not torch.equal(end[name], other[name])],
        "learned": sum(not torch.equal(value, cut[name]) for name, value in end.items()),
    }  # fmt: skip


def main(output, *cases):
    from warprnnt_pytorch import RNNTLoss

    RNNTLoss()  # see recipe_runs.py
    with open(output, "w", encoding="utf-8") as file:
        for name, case in CASES.items():
            if not cases or name in cases:
                try:
                    found = try_one(*case)
                except (Exception, SystemExit) as error:
                    traceback.print_exc()
                    found = {"error": f"{type(error).__name__}: {error}"}
                print(json.dumps({"case": name, **found}), file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
