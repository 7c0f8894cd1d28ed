"""Names that are imported when they are first used are the same, from the same places, for type checkers."""

import ast
import importlib

import pytest


@pytest.mark.parametrize("package", ["espnet3_lite", "espnet3_lite.callbacks"])
def test_what_a_type_checker_sees_is_what_is_imported_at_run_time(package):
    module = importlib.import_module(package)
    with open(module.__file__) as file:
        tree = ast.parse(file.read())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    seen = {}
    for statement in block.body:
        for alias in statement.names:
            assert alias.asname == alias.name, f"write `import {alias.name} as {alias.name}`: it is public"
            seen[alias.name] = statement.module
    assert seen == {name: f"espnet3_lite.{home}" for name, home in module._HOME.items()}
    for name, home in seen.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'Trainr'"):
        module.Trainr  # noqa: B018
