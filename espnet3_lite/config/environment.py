"""Values that ``${oc.env:NAME}`` took from the environment: passwords and tokens among them, which no message shows.

Here: what was taken, and masking it in a message. Who looks values up is `interpolation`.
"""

import os
import re

#: The name of the variable by its value, of each one that was looked up.
_TAKEN: dict[str, str] = {}

#: A value that is shorter is masked only where it is the whole of what would be shown: else "1" hid every 1.
_SHORTEST_IN_TEXT = 4


def take(variable: str) -> str:
    """The value of an environment variable, which from now on is masked in messages."""
    value = os.environ[variable]
    _TAKEN[value] = variable
    return value


def masked(text: str) -> str:
    """A message without the values that came from the environment.

    >>> os.environ["TOKEN_OF_DOCS"] = "sesame-open"
    >>> masked(f"no entry with {take('TOKEN_OF_DOCS')!r}")
    "no entry with '<value of $TOKEN_OF_DOCS>'"
    """
    values = sorted((value for value in _TAKEN if len(value) >= _SHORTEST_IN_TEXT), key=len, reverse=True)
    if not values:
        return text
    forms = {form: value for value in values for form in (value, repr(value)[1:-1])}
    pattern = "|".join(rf"(?<!\w){re.escape(f)}(?!\w)" if len(f) < 8 else re.escape(f) for f in forms)
    return re.sub(pattern, lambda found: f"<value of ${_TAKEN[forms[found[0]]]}>", text)


def masked_repr(value: object) -> str:
    """A value as `repr` shows it, unless it came from the environment, also as the number that was read from it."""
    variable = None if isinstance(value, bool) else _TAKEN.get(str(value))
    return masked(repr(value)) if variable is None else f"<value of ${variable}>"
