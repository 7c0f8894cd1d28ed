"""Writes the tree in `docs/house.md` anew: each room, and the first sentence of each file's docstring.

Run it after a file has come, gone or changed its purpose: ``python docs/house_tree.py``. What is said of a room stands
in the page itself and is kept.
"""

import ast
import re
from pathlib import Path

PAGE = Path(__file__).with_name("house.md")
PACKAGE = PAGE.parents[1] / "espnet3_lite"
FLOORS = {
    "the trainer: knows nothing of ESPnet": (
        "trainer", "loops", "module", "optim", "metrics", "loaders", "distributed", "checkpoint", "checks", "callbacks",
        "loggers",
    ),
    "on top of it": ("espnet", "accelerated"),
    "beside it": ("config", "cli", "report", "compat"),
}  # fmt: skip


def purpose(path: Path) -> str:
    """The first sentence of a file's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return re.split(r"(?<=[^.])\.(?: |$)", text)[0]


def files(folder: Path, indent: int) -> list[str]:
    """A line for each file of a folder, and below the line of a folder within it those of its files."""
    lines = []
    for path in sorted(folder.iterdir()):
        within = (path / "__init__.py").exists()
        if within or (path.suffix == ".py" and path.stem != "__init__"):
            name = " " * indent + path.name + "/" * within
            lines.append(f"{name:<31} {purpose(path / '__init__.py' if within else path)}")
            lines += files(path, indent + 2) if within else []
    return lines


def tree(rooms: dict[str, str]) -> str:
    """The package's folders and files, one a line; `rooms` says what each folder answers."""
    lines = ["espnet3_lite/"]
    lines += [f"  {path.name:<30}{purpose(path)}" for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"]
    for title, names in FLOORS.items():
        lines += ["", f"  -- {title} ".ljust(110, "-")]
        for room in (PACKAGE / name for name in names if (PACKAGE / name).is_dir()):
            lines.append(f"  {room.name + '/':<30}{rooms.get(room.name) or purpose(room / '__init__.py')}")
            lines += files(room, indent=4)
    return "\n".join(lines)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition("```\n")
    old, _, after = rest.partition("\n```")
    rooms = dict(re.findall(r"^  (\w+)/ +(.*)$", old, re.MULTILINE))
    PAGE.write_text(f"{before}```\n{tree(rooms)}\n```{after}", encoding="utf-8")
