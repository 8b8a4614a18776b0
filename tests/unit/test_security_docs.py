"""docs/security.md and docs/reliability.md name tests that exist, and every attack is behind a
promise's file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))
RELIABLE = (ROOT / "docs" / "reliability.md").read_text()
NAMED_THERE = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", RELIABLE)))


@pytest.mark.parametrize(("path", "name"), [*NAMED, *NAMED_THERE])
def test_named_tests_exist(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not name or name in functions


def test_every_file_of_attacks_is_named() -> None:
    files = {f"tests/attacks/{path.name}" for path in (ROOT / "tests/attacks").glob("test_*.py")}
    assert files <= {path for path, _ in NAMED}


def test_every_attack_says_where_it_comes_from() -> None:
    for path in (ROOT / "tests/attacks").glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_reporting_is_linked() -> None:
    assert "(docs/security.md)" in (ROOT / "SECURITY.md").read_text()
    assert "(docs/security.md)" in (ROOT / "README.md").read_text()
