"""What mkdocs does with our docstrings before it reads them: their examples are code, whatever stands around them.

Griffe knows a section ``Examples:``; ours are headed ``Example:``, or stand in the text. A property of a trainer that
is made by a call (``global_step = _Tells(lambda self: ..., "...")``) has its docstring among the arguments.
"""

import ast
import re
from typing import Any

import griffe


class ExamplesAreCode(griffe.Extension):
    """Heads an ``Example:`` section as griffe knows it, and fences a doctest that stands in the text."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        """Once an object is read."""
        made_by = getattr(obj, "value", None)
        if isinstance(made_by, griffe.ExprCall) and str(made_by.function) in ("_Tells", "_in_stage"):
            obj.docstring = griffe.Docstring(ast.literal_eval(str(made_by.arguments[-1])), parent=obj)
            obj.value, obj.labels = None, {"property"}
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = text.replace("the settings: ``help(Trainer.__init__)``", "the [settings](../settings.md)")
            obj.docstring.value = re.sub(r"(?:^>>> .*\n?)(?:^\S.*\n?|^ .*\n?)*", _fenced, text, flags=re.MULTILINE)


def _fenced(doctest: re.Match[str]) -> str:
    return f"```pycon\n{doctest[0].rstrip()}\n```\n"
