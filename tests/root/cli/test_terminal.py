"""`run` as a person sees it, on a terminal."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.fixtures.cli import CommandLine, run_in_terminal

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.usefixtures("settings")]

COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?3[1-7]m")
# Busy, never silent for a second; says things that a terminal would obey.
SCRIPT = (
    r"printf '\033]0;title\007\033[2J\033[31mred\033[0m plain\n'; "
    "i=0; while [ $i -lt 25 ]; do i=$((i+1)); echo tick $i; sleep 0.1; done; exit 3"
)


def show(
    fargatelite: CommandLine, tmp_path: Path, image: str, columns: int, **environment: str
) -> str:
    path = tmp_path / "task.json"
    path.write_text(
        json.dumps(
            {
                "family": "screen",
                "networkMode": "awsvpc",
                "requiresCompatibilities": ["FARGATE"],
                "cpu": "256",
                "memory": "512",
                "containerDefinitions": [
                    {
                        "name": "app",
                        "image": image,
                        "entryPoint": ["/bin/sh", "-c"],
                        "command": [SCRIPT],
                    },
                    {
                        "name": "brief",
                        "image": image,
                        "essential": False,
                        "command": ["true"],
                    },
                ],
            }
        )
    )
    code, shown = run_in_terminal(
        [sys.executable, "-m", "fargatelite", "run", path],
        columns,
        fargatelite.environment | environment,
    )
    assert code == 3
    return shown


@pytest.mark.parametrize("columns", [80, 40])
def test_a_busy_task_on_a_terminal(
    fargatelite: CommandLine, tmp_path: Path, busybox: str, columns: int
) -> None:
    shown = show(fargatelite, tmp_path, busybox, columns)
    # CPU and memory are there although the log never rests; only of what runs.
    assert re.search(r"app cpu \d+% mem [\d.]+ [KM]iB", shown)
    assert "brief cpu" not in shown
    # The name is coloured, the text is as its container coloured it.
    assert re.search(r"\x1b\[36mapp +\| \x1b\[0mtick 1\n", shown)
    assert re.search(r"\x1b\[31mred\x1b\[0m plain", shown)
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "…" not in shown
    # The bars and the status line do not stand below the summary.
    assert "app cpu" not in shown.partition("EssentialContainerExited")[2]


def test_no_color_on_a_terminal(fargatelite: CommandLine, tmp_path: Path, busybox: str) -> None:
    shown = show(fargatelite, tmp_path, busybox, 80, NO_COLOR="1")
    assert "tick 25" in shown
    assert not COLOUR.search(shown)


def test_a_dumb_terminal_gets_no_cursor_movement(
    fargatelite: CommandLine, tmp_path: Path, busybox: str
) -> None:
    shown = show(fargatelite, tmp_path, busybox, 80, TERM="dumb")
    assert "tick 25" in shown
    assert "\x1b[2K" not in shown
    assert not re.search(r"\x1b\[\d*A", shown)


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_bar_of_a_pull_fits(columns: int) -> None:
    """Drawn as it is while a long download goes on."""
    import io

    from fargatelite.cli.screen import make_progress

    out = io.StringIO()
    progress = make_progress(out, columns)
    progress.add_task("pull 0123456789ab", total=500 << 20, completed=123_456_789)
    progress.console.print(progress.get_renderable())
    (line,) = [row for row in out.getvalue().splitlines() if row.strip()]
    assert "pull 0123456789ab" in line
    assert "…" not in line
    assert len(line) <= columns
