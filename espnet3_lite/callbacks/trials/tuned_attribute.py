"""The attribute or hyperparameter that a search sets: `lr`, `batch_size`, wherever a module or its data keep it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from espnet3_lite.exceptions import nearest

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class TunedAttribute:
    """One name in all places: a module and its data module, as an attribute and as an entry of their ``hparams``.

    Args:
        trainer: In a call; for its data module.
        module: Its module.
        names: The first of these that is anywhere.

    Attributes:
        name: Which it is.
        holders: Who has it; the last one's value counts. Empty where nobody has any of them.
    """

    def __init__(self, trainer: Trainer, module: Any, names: Sequence[str]):
        owners = [owner for owner in (module, trainer.datamodule) if owner is not None]
        places = [place for owner in owners for place in (owner, owner.hparams)]
        self.name, self.holders = names[0], [place for place in places if _has(place, names[0])]
        for name in names[1:]:
            if not self.holders:
                self.name, self.holders = name, [place for place in places if _has(place, name)]
        known = [key for place in places for key in (place if isinstance(place, Mapping) else vars(place))]
        #: The end of an error message that nobody has it.
        self.hint = nearest(names[0], known)

    def get(self) -> Any:
        """Its value."""
        holder = self.holders[-1]
        return holder[self.name] if isinstance(holder, Mapping) else getattr(holder, self.name)

    def set(self, value: Any) -> None:
        """Change it wherever it stands."""
        for holder in self.holders:
            if isinstance(holder, MutableMapping):
                holder[self.name] = value
            else:
                setattr(holder, self.name, value)


def _has(place: Any, name: str) -> bool:
    return name in place if isinstance(place, Mapping) else hasattr(place, name)
