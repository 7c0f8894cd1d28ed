"""What README.md and the pages of docs/ show is run, or at least read. (The lessons' pages: `tests/examples`.)

A comment on the line before a fenced block of ``bash`` or ``python`` says what becomes of it:

- ``<!-- run: quick -->``: it runs in this file's quick tests; ``<!-- run: slow -->``: in its slow ones;
- ``<!-- run: slow, needs optuna -->``: likewise, where that package is installed;
- ``<!-- run: no (reason) -->``: it does not run.

A page's commands run first, then its Python blocks in one namespace, in an empty folder. The commands that run
are ``espnet3-lite ...``, ``torchrun ... -m espnet3_lite ...`` and ``python -m espnet3_lite ...``, from the
repository's root, with everything below ``exp/`` in the empty folder instead. ``pip install`` is read and not
run; any other command needs ``run: no``. Those that do not run must at least be commands that the command
line's parser takes. ``yaml`` blocks must be YAML that our reader takes. Blocks of other kinds are output;
``<!-- hooks -->`` stands before the hooks' list.
"""

import ast
import configparser
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from espnet3_lite import Trainer, load_config
from espnet3_lite.callbacks.base import HOOKS
from espnet3_lite.cli.commands import _parse, _parser
from espnet3_lite.config.yaml_text import read_yaml
from espnet3_lite.espnet.status_file import StatusFile

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<fence>```+)(?P<kind>\w*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (.*) -->\n\n?\Z")
#: How long a run may take, in seconds: a bound for a hang, not a measure of speed.
PATIENCE = 1200


class Block(NamedTuple):
    page: Path
    line: int
    kind: str
    text: str
    mark: str

    @property
    def place(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        before = COMMENT.search(text[: match.start()])
        yield Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            kind=match["kind"],
            text=match["text"],
            mark=before[1] if before else "",
        )


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(*kinds, mark="", page=None):
    """Those of some kinds whose mark begins so."""
    return [b for b in BLOCKS if b.kind in kinds and b.mark.startswith(mark) and page in (None, b.page)]


def named(cases):
    return [pytest.param(case, id=case.place) for case in cases]


def commands_of(block):
    """The single commands of a block as lists of words: lines, continued by a backslash, joined by ``&&``."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def arguments_of(command):
    """What our command line gets from a command; None for another program's."""
    for start in (["espnet3-lite"], ["python", "-m", "espnet3_lite"]):
        if command[: len(start)] == start:
            return command[len(start) :]
    if command[0] == "torchrun" and "espnet3_lite" in command:
        return command[command.index("espnet3_lite") + 1 :]
    return None


# ---- read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", named(blocks("bash", "python")))
def test_each_block_says_whether_it_runs(block):
    assert re.fullmatch(r"run: (quick|slow|slow, needs \w+|no \(.+\))", block.mark), (
        f"{block.place}: put <!-- run: quick -->, <!-- run: slow --> or <!-- run: no (reason) --> before it"
    )


@pytest.mark.parametrize("block", named(blocks("python")))
def test_python_can_be_compiled(block):
    ast.parse(block.text)


@pytest.mark.parametrize("block", named(blocks("yaml")))
def test_yaml_can_be_read(block):
    assert len(read_yaml(block.text, block.place)[0]) > 0


@pytest.mark.parametrize("block", named(blocks("bash")))
def test_our_commands_are_such_that_the_parser_takes_them(block):
    for command in commands_of(block):
        arguments = arguments_of(command)
        if arguments is not None:
            _parse(arguments)
            missing = [word for word in arguments if word.startswith("examples/") and not (ROOT / word).exists()]
            assert missing == []


@pytest.mark.parametrize("block", named(blocks("bash")))
def test_the_extras_that_pip_installs_exist(block):
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    for command in commands_of(block):
        for names in re.findall(r"\[([\w,]+)\]", " ".join(command)) if "pip" in command else ():
            assert set(names.split(",")) <= set(extras["options.extras_require"])


def test_the_container_s_file_names_what_is_there():
    (block,) = blocks("dockerfile")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(re.findall(r"/src\[(\w+)\]", block.text)) <= set(setup["options.extras_require"])
    (command,) = re.findall(r'ENTRYPOINT \["(.*?)"\]', block.text)
    assert command in setup["options.entry_points"]["console_scripts"]
    version = re.findall(r"FROM python:(\d+)\.(\d+)", block.text)[0]
    assert f"Programming Language :: Python :: {'.'.join(version)}" in setup["metadata"]["classifiers"]


def test_the_list_of_the_hooks_is_the_one_in_the_code():
    (block,) = blocks("", mark="hooks")
    lines = [line for line in block.text.splitlines() if line.strip()]
    assert lines.index("at any moment:") == lines.index("teardown") + 1  # as `espnet3-lite hooks` prints it
    assert tuple(line.split()[0] for line in lines if line != "at any moment:") == HOOKS


def test_the_map_names_every_room_and_no_other():
    (block,) = [block for block in BLOCKS if block.text.startswith("espnet3_lite/\n")]
    on_disk = {path.name for path in (ROOT / "espnet3_lite").glob("*.py")} - {"__init__.py"}
    on_disk |= {f"{path.parent.name}/" for path in (ROOT / "espnet3_lite").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+\.py|\w+/)", block.text, re.MULTILINE)) == on_disk


def test_the_commands_page_names_each_command_with_its_options():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    (commands,) = [action.choices for action in _parser()._actions if action.choices]
    rows = {row.split("`")[1].split()[0]: row for row in page.splitlines() if row.startswith("| `")}
    for name, command in commands.items():
        of_all = {"--help", "--quiet", "--traceback"}
        options = {word for action in command._actions for word in action.option_strings if word.startswith("--")}
        assert set(re.findall(r"`(--[\w-]+)", rows[name])) == options - of_all, name
        assert all(f"`{word}`" in page for word in of_all)


def test_the_commands_page_names_each_environment_variable_that_the_package_reads():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "espnet3_lite").rglob("*.py")]
    pattern = r"os\.environ(?:\[|\.get\(|\.setdefault\()\"(\w+)\"|\"(\w+)\" in os\.environ"
    read = {name for text in sources for found in re.findall(pattern, text) for name in found if name}
    assert "NO_COLOR" in read and "WORLD_SIZE" in read
    ours = {"PYTHONPATH", "TOKEN_OF_DOCS"}  # put back after espnet3's workers have started; of a docstring's example
    assert {name for name in read - ours if f"`{name}" not in page} == set()


def test_the_commands_page_names_each_key_of_the_status_file(tmp_path):
    trainer = Trainer(max_epochs=0, logger=False, enable_checkpointing=False)
    trainer.state.fn = "fit"
    StatusFile(tmp_path / "status.json").write(trainer, "running")
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [key for key in json.loads((tmp_path / "status.json").read_text()) if f"`{key}`" not in page] == []


def test_links_lead_somewhere():
    for path in [*PAGES, *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_each_page_begins_with_what_it_is_for(page):
    title, blank, first = page.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ") and blank == ""
    assert re.match(r"[A-Z`]", first), f"{page.relative_to(ROOT)}: a sentence comes first, not {first!r}"


def test_the_readme_is_one_screen():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 100


def test_the_generated_pages_follow_the_code():
    spec = importlib.util.spec_from_file_location("generated_pages", ROOT / "docs" / "generated_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run python docs/generated_pages.py"


@pytest.mark.slow
def test_mkdocs_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is in the extra docs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    finished = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert finished.returncode == 0 and "WARNING" not in finished.stderr, finished.stderr
    reference = (tmp_path / "site" / "api" / "main" / "index.html").read_text(encoding="utf-8")
    assert 'id="espnet3_lite.trainer.trainer.Trainer.fit"' in reference and "override_optimizer" in reference


def test_every_page_is_in_the_navigation():
    named_there = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert named_there == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page != README}


# ---- run -----------------------------------------------------------------------------------------------------------


def run_python(chosen, folder):
    """Python blocks, in one namespace, from a folder of their own."""
    script = folder / "blocks.py"
    script.write_text("\n\n".join(f"# {block.place}\n{block.text}" for block in chosen), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # a page may import from examples/
    finished = subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert finished.returncode == 0, finished.stderr


def run_bash(block, folder):
    """The commands of a block, with `folder`/exp standing for ``exp/``."""
    for command in commands_of(block):
        arguments = arguments_of(command)
        if command[:2] == ["pip", "install"]:
            continue
        assert arguments is not None, f"{block.place}: {command[0]} needs <!-- run: no (reason) -->"
        arguments = [re.sub(r"(^|=)exp/", rf"\1{folder}/exp/", word) for word in arguments]
        configs = [word for word in arguments if word.endswith(".yaml")]
        if configs and not any(word.startswith("exp_dir=") for word in arguments):
            arguments.append(f"exp_dir={folder}/{load_config(*configs).exp_dir}")
        launcher = (
            ["-m", "torch.distributed.run", *command[1 : command.index("-m")]] if command[0] == "torchrun" else []
        )
        words = [sys.executable, *launcher, "-m", "espnet3_lite", *arguments]
        finished = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
        assert finished.returncode == 0, f"{words}\n{finished.stdout}\n{finished.stderr}"


def run_page(page, folder, speeds):
    """A page's blocks, in their order; returns how many ran."""
    chosen = [
        b for b in blocks("bash", "python", page=page) if b.mark.partition(",")[0] in [f"run: {s}" for s in speeds]
    ]
    for block in chosen:
        package = block.mark.partition(", needs ")[2]
        if package and importlib.util.find_spec(package) is None:
            pytest.skip(f"{block.place} needs {package}, which is not installed")
    waiting = []
    for block in chosen:
        if block.kind == "bash":
            run_bash(block, folder)
        else:
            waiting.append(block)
    if waiting:
        run_python(waiting, folder)
    return len(chosen)


def test_the_readme_s_quick_blocks_run(tmp_path):
    assert run_page(README, tmp_path, ["quick"]) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_page_runs(page, tmp_path):
    run_page(page, tmp_path, ["quick", "slow"])
