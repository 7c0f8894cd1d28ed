"""Which way imports point, and how long files and functions may be: the rules that keep the house readable.

Imports are read from the source with `ast`, those inside functions included; what stands under ``if TYPE_CHECKING`` is
for readers and type checkers and counts for nothing. Names that are looked up in tables at run time (`compat`,
``_target_``) are no imports.
"""

import ast
import functools
import graphlib
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite import LiteModule, callbacks

PACKAGE = Path(__file__).parents[2] / "espnet3_lite"

#: The rooms from top to bottom; a folder is one room. A room imports from lines below its own, never from one above.
COLUMN = (
    ("__main__",),
    ("cli",),
    ("espnet", "accelerated"),
    ("report",),
    ("trainer",),
    ("loops",),
    ("callbacks", "loggers", "module"),
    ("checks",),
    ("loaders", "optim", "metrics"),
    ("distributed",),
    ("checkpoint",),
)
#: What stands beside it: below `espnet` and `cli`, and knowing nothing of either.
BESIDE = ("config",)
#: Tables of names, which import when they are asked, and what is made of them; nothing imports these.
TABLES = ("compat", "strategies")
#: What everybody may use.
GROUND = (
    "checkpoint.atomic_files",
    "checks.error_notes",
    "checks.signatures",
    "checks.value_kinds",
    "distributed.rank",
    "exceptions",
    "lazy_names",
    "loaders.transfer",
    "seed",
    "trainer.hook_table",
    "trainer.settings",
    "trainer.states",
    "version",
)
MEETING_POINT = ("__main__", "cli", "espnet")

AT_RUN_TIME = {"torch", "numpy", "yaml", "tqdm"}
NEVER = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "accelerate"}

MOST_LINES_IN_A_FILE = 400
MOST_LINES_IN_THE_LOOP = 350
MOST_LINES_IN_A_FUNCTION = 60
MOST_LINES_IN_THE_EPOCH = 80


def module_name(path):
    """``callbacks.base`` for ``espnet3_lite/callbacks/base.py``; a folder's ``__init__`` is the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


#: What ``espnet3-lite init`` writes is a user's own code, and imports as users do.
WRITTEN_FOR_USERS = PACKAGE / "cli" / "digits_recipe"
SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != WRITTEN_FOR_USERS}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def room_of(name):
    return name if name in GROUND else name.partition(".")[0]


def imports_of(node, inside_function=False):
    """Each import of a file as (full name, is it inside a function)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            home = "." * child.level + (child.module or "")
            yield from ((f"{home}.{alias.name}", inside_function) for alias in child.names)
        yield from imports_of(child, inside_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


@functools.cache
def imports_of_file(path):
    """The full names that a file outside the package imports."""
    return [full for full, _ in imports_of(ast.parse(path.read_text(encoding="utf-8")))]


def ours_imported_by(name):
    """The modules of the package that a module imports, each by its own name."""
    found = set()
    for full, _ in imports_of(TREES[name]):
        assert not full.startswith("."), f"{name}: imports inside the package are written in full"
        if full.split(".")[0] == "espnet3_lite":
            inner = full.removeprefix("espnet3_lite").removeprefix(".")
            while inner and inner not in SOURCES:
                inner = inner.rpartition(".")[0]
            found.add(inner or "__init__")
    return found


def test_every_file_has_its_place():
    known = {room for line in (*COLUMN, BESIDE, TABLES, GROUND) for room in line} | {"__init__"}
    rooms = {room_of(name) for name in SOURCES}
    assert sorted(rooms - known) == [], "new rooms: give each a line in COLUMN or BESIDE, and one in the README"
    assert sorted(known - rooms) == []


def test_the_packages_root_holds_few_files():
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def arrows_up():
    """Each import that points up, as (who, whom)."""
    height = {room: index for index, line in enumerate(COLUMN) for room in line}
    for name in SOURCES.keys() - {"__init__"}:
        here = room_of(name)
        if here in TABLES:
            continue
        for target in ours_imported_by(name):
            there = room_of(target)
            if there in GROUND or (there == here and here not in GROUND):
                continue
            beside = there in BESIDE and here in MEETING_POINT
            if not beside and (here in GROUND or height.get(there, -1) <= height.get(here, 99)):
                yield name, target


def test_imports_point_down():
    assert sorted(set(arrows_up())) == []


def test_no_import_goes_in_a_circle_not_even_a_late_one():
    graph = {name: ours_imported_by(name) - {name} for name in SOURCES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the circle
    assert (
        order.index("exceptions")
        < order.index("callbacks.base")
        < order.index("trainer.trainer")
        < order.index("cli.commands")
    )


def test_at_module_level_only_torch_numpy_yaml_and_tqdm_are_imported():
    foreign = {}
    for name, tree in TREES.items():
        for full, late in imports_of(tree):
            top = full.split(".")[0]
            assert top not in NEVER, f"{name} imports {full}"
            if not late and top not in sys.stdlib_module_names | AT_RUN_TIME | {"espnet3_lite"}:
                foreign.setdefault(name, set()).add(full)
    assert foreign == {}


@pytest.mark.parametrize("folder", ["tests", "examples"])
def test_nobody_imports_what_this_replaces(folder):
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        if "golden" in path.parts:
            continue  # scripts that record what the others did, run by hand where they are installed
        for full in imports_of_file(path):
            assert full.split(".")[0] not in NEVER, f"{path} imports {full}"


def test_the_page_of_the_house_names_every_file():
    page = (PACKAGE.parent / "docs" / "house.md").read_text(encoding="utf-8")
    named = re.findall(r"^ +(\S+)", page, re.MULTILINE)
    missing = sorted(path.name for path in SOURCES.values() if path.stem != "__init__" and path.name not in named)
    assert missing == [], "run `python docs/house_tree.py`"


def test_the_folder_of_callbacks_holds_one_callback_a_file():
    """What they are called by and share is in the folders within it."""
    files = {name for name, path in SOURCES.items() if path.parent == PACKAGE / "callbacks" and path.stem != "__init__"}
    assert sorted(files - set(callbacks._HOME.values())) == []


def test_no_test_imports_another():
    """What several tests need is in `tests/helpers`."""
    tests = [path for path in (PACKAGE.parent / "tests").rglob("test_*.py")]
    for path in tests:
        for full in imports_of_file(path):
            assert not full.startswith("test_"), f"{path} imports {full}: move it to tests/helpers"


def test_every_module_says_what_it_is_for():
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_files_are_short():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    assert {name: count for name, count in lengths.items() if count > MOST_LINES_IN_A_FILE} == {}
    assert lengths["loops.fit"] <= MOST_LINES_IN_THE_LOOP


def body_length(function):
    """Lines of a function without its signature and docstring, which are for callers."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return body[-1].end_lineno - body[0].lineno + 1


def functions_of(tree):
    """Every function as (class or "", node)."""
    owners = {child: node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield owners.get(node, ""), node


def test_functions_are_short():
    long = {}
    for name, tree in TREES.items():
        for owner, function in functions_of(tree):
            limit = MOST_LINES_IN_THE_EPOCH if function.name == "train_epoch" else MOST_LINES_IN_A_FUNCTION
            if body_length(function) > limit:
                long[f"{name}:{owner}.{function.name}"] = body_length(function)
    assert long == {}


#: What others may set on a trainer, as Lightning's callbacks do: settings, and the wish to stop.
SETTABLE = {
    "__doc__",
    "accumulate_grad_batches",
    "auto_resume",
    "callbacks",
    "loggers",
    "max_epochs",
    "should_stop",
}


def test_nobody_but_the_trainer_sets_its_attributes():
    others = {}
    for name, tree in TREES.items():
        targets = (t for node in ast.walk(tree) for t in getattr(node, "targets", [getattr(node, "target", None)]))
        flat = (part for t in targets for part in (t.elts if isinstance(t, ast.Tuple) else [t]))
        for target in (t for t in flat if isinstance(t, ast.Attribute)):
            owner = ast.unparse(target.value).split(".")[-1].lstrip("_")
            if owner == "trainer" and target.attr not in SETTABLE:
                others[f"{name}:{target.lineno}"] = ast.unparse(target)
    assert others == {}


FLOOR = ("trainer", "loops", "module", "optim", "metrics", "loaders", "distributed", "checkpoint")
#: Far from the aim; to be lowered whenever the floor has become smaller.
MOST_LINES_OF_CODE, AIM = 6696, 4900
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def lines_of_code(name):
    """Without blanks, comments and docstrings, as ruff formats it."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(SOURCES[name].read_text(encoding="utf-8")).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_the_trainers_floor_is_small():
    rooms = {room: sum(lines_of_code(name) for name in SOURCES if name.split(".")[0] == room) for room in FLOOR}
    print(rooms, "together", sum(rooms.values()), "; the aim is", AIM)
    assert sum(rooms.values()) < MOST_LINES_OF_CODE


def test_the_package_is_light_to_import():
    script = (
        "import sys, torch; before = set(sys.modules); import espnet3_lite\n"
        "print(*sorted({name for name in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    ours = [name.removeprefix("espnet3_lite.") for name in loaded if name.startswith("espnet3_lite")]
    assert ours == ["espnet3_lite", "lazy_names", "version"]
    heavy = {"yaml", "tqdm", "tensorboard", "matplotlib", "sklearn", "rich", "pandas"}
    assert heavy & {name.split(".")[0] for name in loaded} == set()


def test_a_configuration_is_checked_without_torch():
    """It takes seconds to import, and a mistake in a file should show at once."""
    rooms = sorted(name for name in SOURCES if room_of(name) == "config")
    names = ", ".join(f"espnet3_lite.{name}" for name in rooms)
    script = f"import sys, {names}; print('torch' in sys.modules)"
    assert len(rooms) > 10
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


def test_few_frames_lie_between_fit_and_the_optimizers_step():
    stacks = []

    class LookingUp(torch.optim.SGD):
        def step(self, closure=None):
            frame, ours = sys._getframe(1), []
            while frame.f_code.co_name != "fit":
                if PACKAGE in Path(frame.f_code.co_filename).parents:
                    ours.append((Path(frame.f_code.co_filename).name, frame.f_code.co_name))
                frame = frame.f_back
            stacks.append(ours)
            return super().step(closure)

    class Module(LiteModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return LookingUp(self.parameters(), lr=0.1)

    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(Module(), [torch.ones(1, 2)] * 2)
    (stack,) = set(map(tuple, stacks))
    assert stack == (
        ("fit.py", "train_epoch"),
        ("fit.py", "run"),
        ("trainer.py", "_run"),
    )
    assert len(stack) <= 4 and len({file for file, _ in stack}) <= 2


def test_a_trainer_is_nowhere_untyped():
    untyped = [
        name for name, path in SOURCES.items() if re.search(r"\btrainer: Any\b", path.read_text(encoding="utf-8"))
    ]
    assert untyped == []
