"""Which disk a directory lies on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fargatelite.cgroups.disks import find_disk
from fargatelite.errors import HostUnsupported


@pytest.mark.parametrize("is_partition", [False, True])
def test_the_whole_disk_counts(tmp_path: Path, is_partition: bool) -> None:
    device = tmp_path / "block/vda/vda1" if is_partition else tmp_path / "block/vda"
    device.mkdir(parents=True)
    (tmp_path / "block/vda/dev").write_text("254:0\n")
    if is_partition:
        (device / "partition").write_text("1\n")
        (device / "dev").write_text("254:1\n")
    number = tmp_path.stat().st_dev
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / f"{os.major(number)}:{os.minor(number)}").symlink_to(device)
    assert find_disk(tmp_path / "not/yet/there", devices) == "254:0"


def test_without_a_disk_it_says_so() -> None:
    with pytest.raises(HostUnsupported, match="/proc/self lies on no disk of its own"):
        find_disk(Path("/proc/self/none"))
