"""What a fit computes, written out in plain torch: windows, weights, clipping, schedules, averages."""

import copy
import math

import torch

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}
SCHEDULES = {
    "none": None,
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 1 / math.sqrt(n + 1)),
    "steps": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
}


def train(model, batches, setting):
    """Train `model` in place; returns the epochs' mean losses by weight, and the averaged model."""
    optimizer = OPTIMIZERS[setting["optimizer"]](model.parameters())
    schedule = SCHEDULES[setting["schedule"]]
    schedule = schedule and schedule(optimizer)
    average, updates, means = copy.deepcopy(model), 0, []
    window, step = setting["window"], 0
    for _ in range(setting["epochs"]):
        total = weight = pending = 0.0
        for index, (x, y) in enumerate(batches):
            if index % window == 0:
                optimizer.zero_grad()
                pending = 0.0
            loss = model.loss(x, y)
            if not math.isfinite(loss.item()):
                share = None
            elif setting["by_weight"]:
                (loss * len(x)).backward()
                share, pending = len(x), pending + len(x)
            else:
                (loss / window).backward()
                share = len(x)
            if share is not None:
                total, weight = total + loss.item() * share, weight + share
            closes = (index + 1) % window == 0 or index + 1 == len(batches)
            if not closes or all(p.grad is None for p in model.parameters()):
                continue
            if setting["by_weight"]:
                for p in model.parameters():
                    p.grad /= pending
            if setting["clip"] == "norm":
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            elif setting["clip"] == "value":
                torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
            optimizer.step()
            step += 1
            if schedule and setting["interval"] == "step":
                schedule.step()
            if step > setting["average_from"]:
                updates += 1
                for held, now in zip(average.parameters(), model.parameters(), strict=True):
                    d = setting["decay"] if updates > 1 else 0.0
                    held.data.mul_(d).add_(now.data, alpha=1 - d)
        if schedule and setting["interval"] == "epoch":
            schedule.step()
        means.append(total / weight)
    return means, average if updates else model
