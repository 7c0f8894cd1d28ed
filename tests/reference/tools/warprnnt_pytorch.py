"""What espnet's transducer models import, by a package of the registry. (`recipe_runs.py` puts this on the path.)"""


def RNNTLoss(**settings):
    """The loss, used once, so that numba has compiled it."""
    import torch
    from warprnnt_numba import RNNTLossNumba

    loss, lengths = RNNTLossNumba(**settings), torch.tensor([[2], [1]], dtype=torch.int32)
    loss(torch.zeros(1, 2, 2, 3, requires_grad=True), torch.ones(1, 1, dtype=torch.int32), *lengths).backward()
    return loss
