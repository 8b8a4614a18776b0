"""Which disk a directory lies on, as the kernel's limits of block I/O want it named.

Source: cgroup-v2.rst (io.max), blk-cgroup.c: blkg_conf_prep refuses partitions with ENODEV.
"""

from __future__ import annotations

import os
from pathlib import Path

from fargatelite.errors import HostUnsupported

__all__ = ["find_disk"]


def find_disk(directory: Path, devices: Path = Path("/sys/dev/block")) -> str:
    """The device number, `major:minor`, of the whole disk below the file system of `directory`; for
    one that is not made yet, of its nearest parent that is.

    `devices` has a link for each block device (sysfs). Raises: HostUnsupported for a file system
    that lies on no single disk: tmpfs, overlayfs, Btrfs, NFS.
    """
    existing = directory
    while not existing.exists():
        existing = existing.parent
    number = existing.stat().st_dev
    device = devices / f"{os.major(number)}:{os.minor(number)}"
    if not device.exists():
        raise HostUnsupported(
            f"block I/O cannot be bounded: {existing} lies on no disk of its own (but tmpfs, "
            f"overlayfs, Btrfs, NFS): choose another data root, or take [block_io] out of the "
            f"configuration",
            path=existing,
        )
    disk = device.resolve()
    if (disk / "partition").exists():
        disk = disk.parent
    return (disk / "dev").read_text().strip()
