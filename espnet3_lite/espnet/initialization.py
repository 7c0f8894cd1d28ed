"""ESPnet's names for the initialisation of a model's weights: the configuration's ``init``."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from espnet3_lite.exceptions import MisconfigurationException, nearest

_WEIGHTS = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "normal": lambda weight: nn.init.normal_(weight, mean=0.0, std=0.02),
}


def initialize(model: nn.Module, init: str) -> None:
    """Initialise a model's weights in place, drawing the same random numbers as ESPnet.

    Weights with two or more dimensions are filled by the named rule: ``xavier_*`` (Glorot and Bengio 2010),
    ``kaiming_*`` (He et al. 2015, for ReLU), ``normal`` (standard deviation 0.02). Biases become 0. Embeddings and
    normalisation layers initialise themselves, as does a submodule with ``espnet_initialization_fn()``, and parts that
    can reload their pretrained parameters do so.

    Args:
        model: Changed in place.
        init: ``xavier_uniform``, ``xavier_normal``, ``kaiming_uniform``, ``kaiming_normal`` or ``normal``.

    Raises:
        MisconfigurationException: another name.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> initialize(model, "xavier_uniform")
        >>> model[0].bias.tolist()
        [0.0, 0.0]
    """
    if init not in _WEIGHTS:
        raise MisconfigurationException(
            f"init: {init!r} is not one of {', '.join(_WEIGHTS)}{nearest(str(init), _WEIGHTS)}"
        )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            _WEIGHTS[init](parameter.data)
    for name, parameter in model.named_parameters():
        if ".bias" in name and parameter.dim() == 1:
            parameter.data.zero_()
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.LayerNorm, nn.GroupNorm)):
            module.reset_parameters()
        if hasattr(module, "espnet_initialization_fn"):
            cast(Callable[[], None], module.espnet_initialization_fn)()
    for part in ("encoder", "frontend", "postencoder", "decoder"):
        _reload_pretrained(getattr(model, part, None))


def _reload_pretrained(part: nn.Module | None) -> None:
    """ESPnet's pretrained encoders and frontends put their own weights back."""
    for module in (part, *(getattr(part, "frontends", None) or ())):
        if hasattr(module, "reload_pretrained_parameters"):
            module.reload_pretrained_parameters()
