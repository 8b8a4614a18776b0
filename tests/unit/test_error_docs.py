"""docs/errors.md has every error, as the code has it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fargatelite
from fargatelite import errors

PACKAGE = Path(fargatelite.__file__).parent
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in (PACKAGE.parent / "docs" / "errors.md").read_text().splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}


def test_every_error_has_a_row_and_no_other() -> None:
    assert set(ROWS) == set(errors.__all__) - {"FargateliteError"}


@pytest.mark.parametrize("name", sorted(set(errors.__all__) - {"FargateliteError"}))
def test_the_row_is_true(name: str) -> None:
    kind = getattr(errors, name)
    parent, ecs_name, retry, when, remedy = ROWS[name]
    assert parent == f"`{kind.__mro__[1].__name__}`"
    assert ecs_name == (f"`{kind.ecs_name}`" if kind.ecs_name else "")
    assert retry == ("yes" if kind.retryable else "no")
    assert when
    assert remedy


def test_errors_that_reach_a_caller_are_declared_in_one_module() -> None:
    """Whoever subclasses FargateliteError elsewhere has made an error that the table lacks."""
    known = set(errors.__all__)
    for path in PACKAGE.rglob("*.py"):
        if path.name == "errors.py" and path.parent == PACKAGE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                assert not bases & known, f"{path}: class {node.name}"
