"""Public packages that import Lightning, trained on small data: ``python package_programs.py SIDE CASE FOLDER``.

SIDE is ``lightning``, or ``ours``: then all that imports Lightning gets this package. Run in an environment that has
both packages and Lightning, by `test_packages.py`; prints what came of it as JSON.
"""

import json
import os
import sys
import warnings

warnings.filterwarnings("ignore")
SIDE, CASE, FOLDER = sys.argv[1:]
if SIDE == "ours":
    import espnet3_lite.compat

    espnet3_lite.compat.install()

import lightning.pytorch as pl  # noqa: E402 - whose it is, was decided above
import torch  # noqa: E402

torch.set_num_threads(1)
CALLS = []
HOOKS = (
    "setup teardown on_fit_start on_fit_end on_train_start on_train_end on_train_epoch_start on_train_epoch_end "
    "on_train_batch_start on_train_batch_end on_validation_start on_validation_end on_validation_batch_end "
    "on_before_zero_grad on_before_backward on_after_backward on_before_optimizer_step on_save_checkpoint"
).split()


class Noting(pl.Callback):
    """Each hook with the counters, and each batch's loss."""


def _noting(hook):
    def note(self, trainer, pl_module, outputs=None, *_, **__):
        CALLS.append([hook, trainer.global_step, trainer.current_epoch])
        if hook == "on_train_batch_end":
            CALLS.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))
        if CASE == "rl4co" and hook == "on_train_epoch_start" and trainer.current_epoch:
            torch.manual_seed(trainer.current_epoch)  # Lightning makes a reloaded epoch's iterator twice: a number more

    return note


for _hook in HOOKS:
    setattr(Noting, _hook, _noting(_hook))
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "default_root_dir": FOLDER}


def scvi():
    """scvi-tools: its own `Trainer`, logger, plateau scheduler; a checkpoint callback that keeps folders of its own."""
    import anndata
    import numpy as np
    import scvi

    scvi.settings.seed = 0
    scvi.settings.logging_dir = FOLDER
    counts = np.random.default_rng(0).poisson(2.0, (200, 30)).astype("float32")
    cells = anndata.AnnData(counts)
    cells.obs["batch"] = ["a", "b"] * 100
    cells.obs_names, cells.var_names = ([str(index) for index in range(count)] for count in counts.shape)
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_hidden=16, n_latent=4)
    best = scvi.train.SaveCheckpoint(dirpath=f"{FOLDER}/best", monitor="elbo_validation", load_best_on_end=True)
    model.train(
        max_epochs=4, batch_size=32, train_size=0.8, early_stopping=True, callbacks=[Noting(), best],
        plan_kwargs={"reduce_lr_on_plateau": True, "lr_patience": 1}, enable_model_summary=False, **QUIET,
    )  # fmt: skip
    means = {name: float(column.iloc[-1, 0]) for name, column in model.history.items()}
    return model.module, means, float(model.get_elbo())


def rl4co():
    """rl4co: its own `Trainer`; data made anew at each epoch's end; a baseline that is compared and copied then."""
    from rl4co.envs import TSPEnv
    from rl4co.models import REINFORCE, AttentionModelPolicy
    from rl4co.utils import RL4COTrainer

    pl.seed_everything(3)
    env = TSPEnv(generator_params={"num_loc": 6})
    policy = AttentionModelPolicy(
        env_name=env.name, embed_dim=16, num_encoder_layers=1, num_heads=2, feedforward_hidden=16
    )
    sizes = {"train_data_size": 64, "val_data_size": 32, "test_data_size": 32, "dataloader_num_workers": 0}
    model = REINFORCE(env, policy, baseline="rollout", batch_size=16, optimizer_kwargs={"lr": 1e-3}, **sizes)
    trainer = RL4COTrainer(
        max_epochs=3, precision="32-true", matmul_precision=None, callbacks=[Noting()], enable_checkpointing=False,
        logger=pl.loggers.CSVLogger(FOLDER), **QUIET,
    )  # fmt: skip
    trainer.fit(model)
    means = {name: float(value) for name, value in trainer.callback_metrics.items()}
    torch.manual_seed(0)
    return model, means, trainer.test(model, verbose=False)[0]["test/reward"]


module, means, after = {"scvi": scvi, "rl4co": rl4co}[CASE]()
weights = {name: value.double().sum().item() for name, value in module.state_dict().items()}
files = sorted(name for _, folders, names in os.walk(FOLDER) for name in (*folders, *names))
print("RESULT", json.dumps({"calls": CALLS, "weights": weights, "means": means, "after": after, "files": files}))
