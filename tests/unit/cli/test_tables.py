"""Tables on terminals of several widths: fitted, but nothing cut off."""

from __future__ import annotations

import os
import re
import sys

import pytest

from tests.fixtures.cli import run_in_terminal

PROGRAM = """
from fargatelite.cli.tables import print_table
print_table(
    ("TASK ID", "FAMILY", "COST", "CONTAINERS"),
    [("3f2a01234567", "web:1", "0.0002057083", "nginx(0),sidecar-with-a-long-name(137)"),
     ("99aa01234567", "\\x1b]0;title\\x07", "", "db")],
    right=("COST",),
)
"""
NAMES = "nginx(0),sidecar-with-a-long-name(137)"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def show(columns: int, **environment: str) -> str:
    code, shown = run_in_terminal(
        [sys.executable, "-I", "-c", PROGRAM],
        columns,
        {"PATH": os.environ["PATH"], "TERM": "xterm-256color", **environment},
    )
    assert code == 0
    return shown


@pytest.mark.parametrize("columns", [120, 80, 60, 40, 24])
def test_nothing_is_cut_off(columns: int) -> None:
    shown = ESCAPE.sub("", show(columns))
    assert "…" not in shown
    for cell in ("3f2a01234567", "web:1", "0.0002057083", "db"):
        assert re.search(rf"(^|\s){cell}(\s|$)", shown), cell
    folded = re.sub(r"\s", "", shown)
    assert all(part in folded for part in ("nginx(0)", "(137)"))
    if columns > 40:
        assert all(len(line) <= columns for line in shown.splitlines())


def test_a_wide_terminal_gets_a_line_for_each_row() -> None:
    lines = ESCAPE.sub("", show(120)).splitlines()
    assert [line.split()[0] for line in lines] == ["TASK", "3f2a01234567", "99aa01234567"]
    assert NAMES in lines[1]


def test_a_narrow_terminal_gets_a_line_for_each_cell() -> None:
    lines = ESCAPE.sub("", show(40)).splitlines()
    assert lines[:3] == [
        "TASK ID     3f2a01234567",
        "FAMILY      web:1",
        "COST        0.0002057083",
    ]
    assert lines[-3:] == ["TASK ID     99aa01234567", r"FAMILY      \x1b]0;title\x07",
                          "CONTAINERS  db"]  # fmt: skip


def test_cells_cannot_drive_the_terminal() -> None:
    for columns in (120, 40):
        shown = ESCAPE.sub("", show(columns))
        assert "\x1b" not in shown
        assert "\x07" not in shown


def test_no_color() -> None:
    assert not re.search(r"\x1b\[[0-9;]*[34][0-7]m", show(80, NO_COLOR="1"))
