"""What is mounted decides the driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from fargatelite.cgroups import v1, v2
from fargatelite.cgroups.detect import choose_driver, parse_mounts, parse_own_groups
from fargatelite.errors import HostUnsupported

OWN_V1 = "4:memory:/sub\n2:cpu,cpuacct:/\n0::/\n"


def v1_lines(tmp_path: Path, controllers: str) -> str:
    directory = tmp_path / controllers
    directory.mkdir()
    return f"32 31 0:29 / {directory} rw,relatime shared:9 - cgroup cgroup rw,{controllers}\n"


def v2_line(tmp_path: Path, controllers: str) -> str:
    directory = tmp_path / "unified"
    directory.mkdir()
    (directory / "cgroup.controllers").write_text(controllers + "\n")
    return f"41 31 0:38 / {directory} rw,relatime - cgroup2 cgroup2 rw\n"


def test_co_mounted_controllers_share_a_group(tmp_path: Path) -> None:
    text = "".join(
        v1_lines(tmp_path, names)
        for names in ("cpu,cpuacct", "memory", "pids", "freezer", "devices", "blkio")
    )
    driver = choose_driver(text, OWN_V1, has_systemd=None)
    assert isinstance(driver, v1.V1Driver)
    assert len(driver._hierarchies) == 5


def test_v2_with_controllers_wins(tmp_path: Path) -> None:
    text = v2_line(tmp_path, "cpuset cpu io memory pids")
    driver = choose_driver(text, "0::/\n", has_systemd=False)
    assert isinstance(driver, v2.V2Driver)
    assert driver.directory("cpu", "fargatelite/x") == f"{tmp_path}/unified/fargatelite/x"


def test_under_systemd_the_subtree_is_a_unit_of_its(tmp_path: Path) -> None:
    driver = choose_driver(v2_line(tmp_path, "cpu memory pids"), "0::/\n", has_systemd=True)
    expected = f"{tmp_path}/unified/system.slice/fargatelite.service/fargatelite/x"
    assert driver.directory("cpu", "fargatelite/x") == expected


def test_a_hierarchy_that_is_not_writable_is_named(tmp_path: Path) -> None:
    line = f"41 31 0:38 / {tmp_path}/absent ro - cgroup2 cgroup2 ro\n"
    with pytest.raises(HostUnsupported, match=r"v2 hierarchy at .*absent is not writable"):
        choose_driver(line, "0::/\n", has_systemd=None)


def test_hybrid_host_is_v1(tmp_path: Path) -> None:
    text = v2_line(tmp_path, "hugetlb") + "".join(
        v1_lines(tmp_path, name) for name in v1.CONTROLLERS
    )
    assert isinstance(choose_driver(text, OWN_V1, has_systemd=None), v1.V1Driver)


def test_missing_controllers_are_named(tmp_path: Path) -> None:
    with pytest.raises(HostUnsupported, match="lacks freezer, cpu, cpuacct, pids, devices"):
        choose_driver(
            v2_line(tmp_path, "") + v1_lines(tmp_path, "memory"), OWN_V1, has_systemd=None
        )


def test_mount_points_are_unescaped() -> None:
    line = "1 2 0:3 /a\\040b /c\\040d rw - cgroup2 none rw\n"
    mount = parse_mounts(line).v2
    assert mount is not None
    assert (mount.root, mount.point) == ("/a b", "/c d")


def test_own_groups() -> None:
    assert parse_own_groups(OWN_V1) == {"memory": "/sub", "cpu": "/", "cpuacct": "/", "": "/"}
