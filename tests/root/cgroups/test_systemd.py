"""Groups on a host where systemd owns the tree: delegated, kept over its reloads, visible."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fargatelite.cgroups.cgroup import CgroupLimits, Driver
from fargatelite.cgroups.systemd import UNIT, is_running

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


def _limits(group: Path) -> list[str]:
    return [
        (directory / name).read_text()
        for directory in (group, group / "c")
        for name in ("memory.max", "cpu.max", "pids.max", "cgroup.subtree_control")
    ]
