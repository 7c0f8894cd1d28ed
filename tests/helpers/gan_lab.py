"""A model with ESPnet2's adversarial contract and 8 batches for it, for espnet2's own `GANTrainer` and for us."""

import torch

CASES = {
    "discriminator_first": {"generator_first": False},
    "generator_first": {"generator_first": True},
    "tensor_index": {"generator_first": False, "index": "tensor"},
}
RATE, WARMUP = {"generator": 0.05, "discriminator": 0.1}, 6


class TwoTurns(torch.nn.Module):
    """The generator's output is kept between the turns; `bad` maps a batch's index to the turn whose loss is NaN.

    Args:
        index: How `optim_idx` is given: ``number`` or ``tensor``.
    """

    def __init__(self, index="number", bad=None, clears=False):
        super().__init__()
        seed = torch.Generator().manual_seed(11)
        self.generator = torch.nn.Linear(3, 2)
        self.discriminator = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=seed, dtype=torch.float64) - 0.5
        self.index, self.bad, self.fake, self.calls = index, bad or {}, None, []
        if clears:
            self.clear_cache = self._clear

    def _clear(self):
        self.fake = None
        self.calls.append("clear")

    def forward(self, forward_generator=True, x=None, real=None, number=None):
        turn = "generator" if forward_generator else "discriminator"
        self.calls.append(turn)
        kept, self.fake = self.fake, None
        fake = self.generator(x) if kept is None else kept
        if kept is None:
            self.fake = fake  # for the other turn
        judged = self.discriminator(fake if forward_generator else fake.detach())
        if forward_generator:
            loss = (judged - 1).square().mean() + 0.1 * (fake - real).abs().mean()
        else:
            loss = judged.square().mean() + (self.discriminator(real) - 1).square().mean()
        if number is not None and self.bad.get(int(number[0])) == turn:
            loss = loss * float("nan")
        optim_idx = 0 if forward_generator else 1
        if self.index == "tensor":
            optim_idx = torch.tensor([optim_idx, optim_idx])
        weight = torch.tensor(float(len(x)), dtype=torch.float64)
        return {"loss": loss, "stats": {f"{turn}_loss": loss.detach()}, "weight": weight, "optim_idx": optim_idx}

    def collect_feats(self, **batch):
        return {}


def batches(count=8, size=4):
    """``[(uids, dict)]``."""
    seed = torch.Generator().manual_seed(12)

    def draw(width):
        return torch.randn(size, width, generator=seed, dtype=torch.float64)

    return [
        ([f"{i}_{j}" for j in range(size)], {"x": draw(3), "real": draw(2), "number": torch.full((size,), i)})
        for i in range(count)
    ]


def record_steps(model, optimizers):
    """A list to which each optimizer's step adds (name, all parameters in one list, its rate)."""
    seen = []
    for name, optimizer in optimizers.items():

        def after(optimizer, args, kwargs, name=name):
            values = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).tolist()
            seen.append([name, values, optimizer.param_groups[0]["lr"]])

        optimizer.register_step_post_hook(after)
    return seen
