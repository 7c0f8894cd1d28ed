"""How much one value of a configuration may take: each ``${...}`` twice in the next one doubles it, for ever."""

from __future__ import annotations

import threading

#: How many interpolations, and copies of containers, the value of one key may stand for.
MOST = 2_000
TOO_MUCH = (
    f"it stands for more than {MOST:,} other values, by ${{...}} that hold ${{...}} that hold others; write it out"
)


class Effort(threading.local):
    """Counts what one value takes."""

    def __init__(self) -> None:
        self.count = 0

    def exceeded(self, outermost: bool) -> bool:
        """One more, or the first one of a value; True where there are too many."""
        self.count = 0 if outermost else self.count + 1
        return self.count > MOST
