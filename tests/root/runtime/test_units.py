"""On a host with systemd a task does not depend on the unit that started it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fargatelite import RecordedTask, Settings, find_task
from fargatelite.cgroups import systemd
from fargatelite.runtime.detached import ensure_supervised
from fargatelite.runtime.remote import is_one_lost
from tests.fixtures.patience import patient

from .test_container_features import TIMEOUT_S, definition, shell
from .test_detached import await_end, supervisors

pytestmark = [
    pytest.mark.root,
    pytest.mark.registry,
    pytest.mark.vm,
    pytest.mark.skipif(not systemd.is_running(), reason="systemd is not PID 1 here"),
]
KEEPERS = f"0::/system.slice/{systemd.UNIT}/keepers\n"


@pytest.fixture
def roots(settings: Settings) -> Iterator[Settings]:
    yield settings
    await_end(settings)


class Unit:
    """A transient service that runs Python."""

    def __init__(self) -> None:
        self.name = f"starts-a-task-{secrets.token_hex(4)}.service"

    def run(self, *words: str, wait: bool) -> None:
        """Starts it; with `wait` until it has ended, and its exit code must be 0."""
        variables = [f"--setenv={name}={value}" for name, value in os.environ.items()]
        self._command(
            "systemd-run", "--quiet", f"--unit={self.name}", f"--working-directory={os.getcwd()}",
            *(["--wait"] if wait else []), *variables, sys.executable, *words,
        )  # fmt: skip

    def stop(self) -> None:
        """Returns when no process of it is left."""
        self._command("systemctl", "stop", self.name)
        state = self._command("systemctl", "show", "-p", "ActiveState,ControlGroup", self.name)
        assert "ActiveState=active" not in state
        assert f"{self.name}" not in state

    def _command(self, *command: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def unit() -> Iterator[Unit]:
    made = Unit()
    yield made
    subprocess.run(["systemctl", "kill", "--signal=KILL", made.name], capture_output=True)


def library(roots: Settings, document: object, told: Path) -> str:
    """A program that runs a task, writes its id to `told` once it runs, and waits for ever."""
    return (
        "import fargatelite, os, signal\n"
        f"data, run, told = {roots.data_root!r}, {roots.run_root!r}, {str(told)!r}\n"
        "settings = fargatelite.Settings(data_root=data, run_root=run)\n"
        f"task = fargatelite.run_task({json.dumps(document)!r}, settings=settings)\n"
        f"task.until('RUNNING', {TIMEOUT_S})\n"
        "open(told + '.new', 'w').write(task.id)\n"
        "os.rename(told + '.new', told)\n"
        "signal.pause()\n"
    )


def shims() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            is_one = path.read_text().startswith("fargatelite-shi")
        except OSError:
            continue  # it ended while we looked
        if is_one:
            found.append(int(path.parent.name))
    return found


def group_of(process: int) -> str:
    return Path(f"/proc/{process}/cgroup").read_text()


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stopped_unit_leaves_its_task_which_is_adopted(
    roots: Settings, busybox: str, tmp_path: Path, unit: Unit
) -> None:
    document = definition(busybox, shell("app", "echo up; sleep 3000", stopTimeout=2))
    told = tmp_path / "told"
    unit.run("-c", library(roots, document, told), wait=False)
    await_that(told.exists)
    task = find_task(told.read_text(), settings=roots)
    assert isinstance(task, RecordedTask)
    process = task.state.container("app").pid
    (shim,) = shims()
    assert group_of(shim) == KEEPERS
    unit.stop()
    assert is_one_lost(roots)
    assert shims() == [shim]
    ensure_supervised(roots)
    assert not is_one_lost(roots)
    assert task.last_status == "RUNNING"
    assert task.state.container("app").pid == process
    assert task.stats()["app"]["memory_bytes"] > 0
    task.stop("enough")
    assert (task.stop_code, task.stopped_reason) == ("UserInitiated", "enough")


def test_a_unit_that_ends_leaves_its_detached_task(
    roots: Settings, busybox: str, tmp_path: Path, unit: Unit
) -> None:
    file = tmp_path / "task.json"
    script = "echo up; while [ ! -e /go ]; do sleep 0.1; done; exit 6"
    file.write_text(json.dumps(definition(busybox, shell("app", script, stopTimeout=2))))
    options = ["--data-root", roots.data_root, "--run-root", roots.run_root]
    unit.run(
        "-m", "fargatelite", *options, "run", "--detach", "--wait-for", "RUNNING", str(file),
        wait=True,
    )  # fmt: skip
    (supervisor,) = supervisors(roots)
    (shim,) = shims()
    assert [group_of(supervisor), group_of(shim)] == [KEEPERS, KEEPERS]
    assert not is_one_lost(roots)
    shown = subprocess.run(
        [sys.executable, "-m", "fargatelite", *options, "ps", "--quiet"],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    task = find_task(shown.stdout.strip(), settings=roots)
    assert task.last_status == "RUNNING"
    subprocess.run(
        [sys.executable, "-m", "fargatelite", *options, "exec", "--force", task.id, "touch", "/go"],
        capture_output=True, timeout=patient(60), check=True,
    )  # fmt: skip
    assert task.wait(TIMEOUT_S) == 6
