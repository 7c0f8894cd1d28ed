"""What a fit computes, written out in plain torch: number formats, windows, weights, clipping, schedules, averages."""

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
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def autocast(precision):
    dtype = AUTOCAST.get(precision)
    return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def clip(parameters, kind):
    if kind == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, 0.3)
    elif kind == "value":
        torch.nn.utils.clip_grad_value_(parameters, 0.1)


def finite(parameters):
    return all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None)


def train(model, batches, setting):
    """Train `model` in place; returns the epochs' mean losses by weight, and the averaged model."""
    optimizer = OPTIMIZERS[setting["optimizer"]](model.parameters())
    schedule = SCHEDULES[setting["schedule"]]
    schedule = schedule and schedule(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=setting["precision"] == "16-mixed")
    average, updates, means = copy.deepcopy(model), 0, []
    window, step = setting["window"], 0
    for _ in range(setting["epochs"]):
        total = weight = pending = 0.0
        for index, (x, y) in enumerate(batches):
            if index % window == 0:
                optimizer.zero_grad()
                pending = 0.0
            with autocast(setting["precision"]):
                loss = model.loss(x, y)
            if not math.isfinite(loss.item()):
                share = None
            elif setting["by_weight"]:
                scaler.scale(loss * len(x)).backward()
                share, pending = len(x), pending + len(x)
            else:
                scaler.scale(loss / window).backward()
                share = len(x)
            if share is not None:
                total, weight = total + loss.item() * share, weight + share
            closes = (index + 1) % window == 0 or index + 1 == len(batches)
            if not closes or all(p.grad is None for p in model.parameters()):
                continue
            if setting["by_weight"]:
                for p in model.parameters():
                    p.grad /= pending
            scaler.unscale_(optimizer)
            made = finite(model.parameters())
            clip(model.parameters(), setting["clip"])
            scaler.step(optimizer)
            scaler.update()
            if not made:
                continue
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
    return means, average if updates else model, scaler.get_scale(), step


def train_named(model, batches, setting):
    """Two named optimizers, each with its own window, clipping and schedule. Returns updates by name, and the scale."""
    scaler = torch.amp.GradScaler("cpu", enabled=setting["precision"] == "16-mixed")
    named = {}
    for name, own in setting["named"].items():
        parameters = list(getattr(model, name).parameters())
        optimizer, schedule = OPTIMIZERS[own["optimizer"]](parameters), SCHEDULES[own["schedule"]]
        named[name] = (own, parameters, optimizer, schedule and schedule(optimizer))
    pending, updates, batches_that_stepped = dict.fromkeys(named, 0), dict.fromkeys(named, 0), 0
    for epoch in range(setting["epochs"]):
        for index, (x, y) in enumerate(batches):
            turn = setting["turns"][(epoch * len(batches) + index) % len(setting["turns"])]
            with autocast(setting["precision"]):
                losses = model.losses(x, y, turn)
            if not all(math.isfinite(loss.item()) for loss in losses.values()):
                continue
            for name, loss in losses.items():
                own, parameters, optimizer, _ = named[name]
                if not pending[name]:
                    optimizer.zero_grad()
                scaler.scale(loss / own["window"]).backward(inputs=parameters, retain_graph=True)
                pending[name] += 1
            full = [name for name in losses if pending[name] == named[name][0]["window"]]
            stepped, before = False, scaler.get_scale()
            for name in full:
                own, parameters, optimizer, schedule = named[name]
                scaler.unscale_(optimizer)
                made = finite(parameters)
                clip(parameters, own["clip"])
                scaler.step(optimizer)
                pending[name] = 0
                if made:
                    updates[name], stepped = updates[name] + 1, True
                    if schedule and own["interval"] == "step":
                        schedule.step()
            batches_that_stepped += stepped
            if full:
                scaler.update()
            for name in (other for other in named if pending[other]):  # they wait: a new scale is theirs too
                for parameter in named[name][1]:
                    if parameter.grad is not None:
                        parameter.grad *= scaler.get_scale() / before
        for own, _, _, schedule in named.values():
            if schedule and own["interval"] == "epoch":
                schedule.step()
    return updates, scaler.get_scale(), batches_that_stepped
