"""Groups on a host where systemd owns the tree: delegated, kept over its reloads, visible."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fargatelite.cgroups.cgroup import CgroupLimits, Driver
from fargatelite.cgroups.systemd import UNIT, is_running
from tests.fixtures.patience import patient

from .conftest import Inhabitants

pytestmark = [
    pytest.mark.root,
    pytest.mark.vm,
    pytest.mark.skipif(not is_running(), reason="systemd is not PID 1 here"),
]
WAIT = "print('ready', flush=True)\nimport signal\nsignal.pause()\n"


def _tell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_subtree_is_delegated(driver: Driver, path: str) -> None:
    group = driver.create(path, CgroupLimits(memory_bytes=32 << 20))
    shown = _tell("systemctl", "show", UNIT, "-p", "Delegate,ControlGroup,ActiveState,TasksMax")
    properties = dict(line.split("=", 1) for line in shown.splitlines())
    assert properties["Delegate"] == "yes"
    assert properties["ActiveState"] == "active"
    assert properties["TasksMax"] == "infinity"
    assert group.clone_into == f"/sys/fs/cgroup{properties['ControlGroup']}/{path}"


@pytest.mark.parametrize("command", ["daemon-reload", "daemon-reexec"])
def test_limits_and_processes_outlive_a_reload(
    driver: Driver, path: str, inhabitants: Inhabitants, command: str
) -> None:
    driver.create(path, CgroupLimits(memory_bytes=48 << 20, cpu_quota_us=20_000, pids_max=50))
    group = driver.create(f"{path}/c", CgroupLimits(memory_bytes=32 << 20))
    process = inhabitants.start(group, WAIT)
    before = _limits(Path(str(group.clone_into)).parent)
    _tell("systemctl", command)
    assert _limits(Path(str(group.clone_into)).parent) == before
    assert driver.pids(path) == [process.pid]
    driver.create(f"{path}/later", CgroupLimits(memory_bytes=16 << 20))


def test_it_is_seen(driver: Driver, path: str, inhabitants: Inhabitants) -> None:
    group = driver.create(f"{path}/c", CgroupLimits())
    process = inhabitants.start(group, WAIT)
    assert str(process.pid) in _tell("systemd-cgls", "--no-pager", "--unit", UNIT)
    assert "Tasks of fargatelite" in _tell("systemctl", "status", "--no-pager", UNIT)


@pytest.mark.parametrize("end", ["stop", "kill --signal=KILL"])
def test_all_who_ask_first_get_it(driver: Driver, path: str, end: str) -> None:
    """As after a boot, or when the service was stopped or has failed: each asks systemd for it."""
    driver.create(path, CgroupLimits())
    code = (
        "import sys, threading\n"
        "from fargatelite.cgroups.cgroup import CgroupLimits\n"
        "from fargatelite.cgroups.detect import detect_driver\n"
        "driver = detect_driver()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "made = []\n"
        "def make(name):\n"
        "    made.append(driver.create(name, CgroupLimits(memory_bytes=32 << 20)))\n"
        "names = [f'{sys.argv[1]}-{number}' for number in range(2)]\n"
        "threads = [threading.Thread(target=make, args=(name,)) for name in names]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "sys.exit(len(made) != 2)\n"
    )
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"{path}/{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    for process in asking:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    _tell("systemctl", *end.split(), UNIT)
    # Waits until nothing of it runs; 5 when it is forgotten already.
    stopped = subprocess.run(["systemctl", "stop", UNIT], check=False, timeout=patient(30))
    assert stopped.returncode in (0, 5)
    for process in asking:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in asking:
        _, errors = process.communicate(timeout=patient(30))
        assert (process.returncode, errors) == (0, "")
    assert _tell("systemctl", "is-active", UNIT) == "active\n"
    assert driver.create(f"{path}/late", CgroupLimits()).clone_into is not None


def _limits(group: Path) -> list[str]:
    return [
        (directory / name).read_text()
        for directory in (group, group / "c")
        for name in ("memory.max", "cpu.max", "pids.max", "cgroup.subtree_control")
    ]
