"""Groups that a test makes below fargatelite/, and processes in them; both are gone afterwards."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fargatelite.cgroups.cgroup import Cgroup, Driver
from fargatelite.cgroups.detect import detect_driver


class Inhabitants:
    """Starts programs inside a group; every program prints a line when it is ready."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, group: Cgroup, program: str) -> subprocess.Popen[str]:
        join = "".join(f"open({file!r}, 'w').write('0')\n" for file in group.join_files)
        process = subprocess.Popen(
            [sys.executable, "-c", join + program], stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(self._end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def driver() -> Driver:
    return detect_driver()


@pytest.fixture
def path(driver: Driver) -> Iterator[str]:
    name = f"fargatelite/test-{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    driver.kill(name)
    driver.remove(name)
    assert name.split("/")[1] not in driver.list_tasks()


@pytest.fixture
def inhabitants() -> Iterator[Inhabitants]:
    with ExitStack() as stack:
        yield Inhabitants(stack)


@pytest.fixture
def unified_root() -> Path:
    """The v2 hierarchy, with or without controllers."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split()[4])
    pytest.fail("no cgroup2 is mounted")
