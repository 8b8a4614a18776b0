"""A reading of this machine's groups and of a real namespace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fargatelite.cgroups.cgroup import CgroupLimits
from fargatelite.cgroups.detect import detect_driver
from fargatelite.metadata.readings import GroupPaths, read_networks, read_reading

from .conftest import new_namespace

pytestmark = [pytest.mark.root, pytest.mark.vm]


def test_a_reading_has_the_groups_figures() -> None:
    driver = detect_driver()
    path = f"fargatelite/test-metadata-{os.getpid()}"
    group = driver.create(path, CgroupLimits(memory_bytes=64 << 20, pids_max=50))
    try:
        memory = str(Path(group.memory_usage_file).parent)
        cpuacct = str(Path(group.cpu_usage_file).parent)
        paths = GroupPaths(version=group.version, cpu=cpuacct, cpuacct=cpuacct, memory=memory)
        reading = read_reading(paths, {})
    finally:
        driver.remove(path)
    assert reading.memory_limit_bytes == 64 << 20
    assert reading.cpu_total_ns == 0
    assert reading.system_cpu_ns > 0
    assert reading.online_cpus == os.cpu_count()
    assert reading.memory_stats


def test_a_new_namespace_has_only_lo() -> None:
    netns_fd = new_namespace()
    try:
        assert read_networks(netns_fd) == {}
    finally:
        os.close(netns_fd)
