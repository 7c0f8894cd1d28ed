"""An optimizer that trains other weights than those that are to be used."""

import torch


class ScheduleFreeSGD(torch.optim.Optimizer):
    """https://arxiv.org/abs/2405.15682, equations 8 to 10: z is stepped, x is its mean, gradients are taken at y."""

    def __init__(self, parameters, lr=0.1, beta=0.9):
        super().__init__(parameters, {"lr": lr, "beta": beta, "train_mode": False, "steps": 0})

    def _move(self, from_mode, weight):
        for group in self.param_groups:
            if group["train_mode"] is from_mode:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.data.lerp_(self.state[p]["z"], weight(group["beta"]))
                group["train_mode"] = not from_mode

    def train(self):
        self._move(False, lambda beta: 1 - beta)

    def eval(self):
        assert self.state, "as SPlus, it has nothing to give before its first step"
        self._move(True, lambda beta: 1 - 1 / beta)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"], "not in train mode"
            group["steps"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                x = p.lerp(z, 1 - 1 / group["beta"])
                z.sub_(p.grad, alpha=group["lr"])
                x.lerp_(z, 1 / group["steps"])
                p.copy_(x.lerp(z, 1 - group["beta"]))
