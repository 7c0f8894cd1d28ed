"""Number formats over whole runs: windows without a backward pass, and weights that survive a resume."""

import torch
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule, Trainer


class Line(LiteModule):
    """Leaves out the batches named in `without_loss`."""

    def __init__(self, without_loss=()):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.without_loss = without_loss

    def training_step(self, batch, batch_idx):
        return None if batch_idx in self.without_loss else self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(tmp_path, precision):
    return Trainer(
        precision=precision, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip


def test_the_scaler_leaves_a_window_without_a_backward_pass_alone(tmp_path):
    trainer, module = trainer_of(tmp_path, "16-mixed"), Line(without_loss=(0, 1, 2))
    before = module.layer.weight.detach().clone()
    trainer.fit(module, DataLoader(torch.ones(6, 3), batch_size=2))
    assert torch.equal(module.layer.weight, before)
    assert trainer.precision.scaler.get_scale() == 65536.0


def test_double_weights_are_not_rounded_when_a_run_resumes(tmp_path):
    torch.manual_seed(1)
    loader = DataLoader(torch.randn(6, 3), batch_size=2)
    trainer, module = trainer_of(tmp_path, "64-true"), Line()
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert not torch.equal(module.layer.weight, module.layer.weight.float().double())  # float32 cannot hold them
    resumed = Line()
    trainer_of(tmp_path, "64-true").fit(resumed, loader, ckpt_path=tmp_path / "saved.ckpt")
    assert torch.equal(resumed.layer.weight, module.layer.weight)
