"""The v2 driver against a directory tree that has a cgroup file system's files.

Plain files keep what is written, which is what the kernel does with valid values; a group gets its
files from a prepared directory, as mkdir(2) makes them in cgroupfs. The real kernel is met in the
VM, and for cgroup.kill and device programs in tests/root/cgroups.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.cgroups.cgroup import CgroupLimits
from fargatelite.cgroups.v2 import V2Driver, cpu_weight
from fargatelite.errors import CgroupFailed, HostUnsupported

TASK = "fargatelite/0123456789abcdef0123456789abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for group in ("", "fargatelite", TASK, f"{TASK}/web"):
        directory = tmp_path / group
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text("cpu memory pids io\n")
        for name in ("cgroup.subtree_control", "cpu.max", "cpu.weight", "memory.low", "memory.max"):
            (directory / name).write_text("")
        more = "memory.swap.max", "memory.oom.group", "pids.max", "memory.peak", "cgroup.procs"
        for name in more:
            (directory / name).write_text("")
    return tmp_path


def test_limits_reach_their_files(root: Path) -> None:
    limits = CgroupLimits(
        cpu_quota_us=25_000,
        cpu_shares=256,
        memory_bytes=512 << 20,
        memory_soft_bytes=128 << 20,
        oom_group=True,
        pids_max=100,
        devices=False,
    )
    group = V2Driver(str(root)).create(f"{TASK}/web", limits)
    directory = root / TASK / "web"
    found = {
        name: (directory / name).read_text()
        for name in ("cpu.max", "cpu.weight", "memory.max", "memory.low", "pids.max")
    }
    assert found == {
        "cpu.max": "25000 100000",
        "cpu.weight": str(cpu_weight(256)),
        "memory.max": "536870912",
        "memory.low": "134217728",
        "pids.max": "100",
    }
    assert (directory / "memory.swap.max").read_text() == "0"
    assert (directory / "memory.oom.group").read_text() == "1"
    assert group.clone_into == str(directory)
    assert group.memory_peak_file == f"{directory}/memory.peak"
    assert (root / TASK / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_value_that_the_kernel_changed_is_an_error(root: Path) -> None:
    file = root / TASK / "pids.max"
    file.unlink()
    file.symlink_to("/dev/null")  # takes the write, holds nothing
    with pytest.raises(CgroupFailed, match=r"wrote '5' to .*pids.max .* holds ''"):
        V2Driver(str(root)).create(TASK, CgroupLimits(pids_max=5, devices=False))


def test_missing_controller_is_named(root: Path) -> None:
    (root / "cgroup.controllers").write_text("cpu pids\n")
    with pytest.raises(HostUnsupported, match="has no memory controller"):
        V2Driver(str(root)).create(TASK, CgroupLimits(devices=False))


@pytest.mark.parametrize(
    "path", ["fargatelite", "other/x", "fargatelite/../x", "fargatelite//x", "/fargatelite/x", ""]
)
def test_only_groups_of_ours_can_be_touched(root: Path, path: str) -> None:
    driver = V2Driver(str(root))
    with pytest.raises(CgroupFailed, match="is not a group below fargatelite/"):
        driver.remove(path)
    with pytest.raises(CgroupFailed, match="is not a group below fargatelite/"):
        driver.kill(path)


def test_reads_usage(root: Path) -> None:
    directory = root / TASK
    (directory / "cpu.stat").write_text("usage_usec 1234\nuser_usec 1000\n")
    (directory / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    (directory / "memory.current").write_text("4096\n")
    (directory / "memory.peak").write_text("8192\n")
    driver = V2Driver(str(root))
    assert driver.cpu_usage_ns(TASK) == 1_234_000
    assert driver.oom_kills(TASK) == 1
    assert driver.memory_usage_bytes(TASK) == 4096
    assert driver.memory_peak_bytes(TASK) == 8192


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 100), (262144, 10000)])
def test_weight_of_shares(shares: int, weight: int) -> None:
    assert cpu_weight(shares) == weight


@given(st.integers(2, 262144), st.integers(2, 262144))
def test_weight_keeps_the_order_of_shares(first: int, second: int) -> None:
    low, high = sorted((first, second))
    assert 1 <= cpu_weight(low) <= cpu_weight(high) <= 10000
