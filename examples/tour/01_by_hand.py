"""A training loop by hand. Everything else in this tour, and `espnet3_lite/loops/fit.py`, is this with names.

python examples/tour/01_by_hand.py
"""

import torch

torch.manual_seed(0)
x = torch.randn(64, 2, dtype=torch.float64)  # (samples, features)
y = x.sum(dim=1, keepdim=True)  # what a perfect layer would say: weights of one, bias of zero
batches = [(x[start : start + 8], y[start : start + 8]) for start in range(0, 64, 8)]

layer = torch.nn.Linear(2, 1, dtype=torch.float64)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
global_step = 0

for epoch in range(3):
    layer.train()
    for batch_x, batch_y in batches:  # next batch
        loss = torch.nn.functional.mse_loss(layer(batch_x), batch_y)  # forward
        if not torch.isfinite(loss):  # agree: several ranks would ask one another here
            continue
        optimizer.zero_grad()
        loss.backward()  # backward
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)  # update
        optimizer.step()
        global_step += 1  # finish
    layer.eval()
    with torch.no_grad():  # validate
        val_loss = torch.nn.functional.mse_loss(layer(x), y)
    scheduler.step()  # the epoch's end
    print(f"epoch {epoch}: val_loss {val_loss:.6f}, lr {scheduler.get_last_lr()[0]}")

print("global_step", global_step)
