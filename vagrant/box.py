"""The box: the default guest's disk as Vagrant's libvirt provider takes it, with its kernel beside.

Unlike the throw-away guests it has systemd, sshd, an address by DHCP and a user `vagrant` that may
become root and whose key everybody has. It is for this machine alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from vagrant.guests import GUESTS
from vagrant.image import BUILD, DISK_BYTES, build

__all__ = ["build_box"]

BOX = BUILD / "box"


def build_box() -> Path:
    """Builds the box when its disk has changed; some 20 s."""
    guest = GUESTS["default"]
    built = build(guest.user_space)
    target = BOX / "fargatelite.box"
    if target.exists() and target.stat().st_mtime_ns > built.disk.stat().st_mtime_ns:
        return target
    shutil.rmtree(BOX, ignore_errors=True)
    BOX.mkdir(parents=True)
    for source, name in zip(built.kernel(guest.kernel), ("vmlinux", "initrd"), strict=True):
        shutil.copy2(source, BOX / name)
    image = BOX / "box.img"
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", built.disk, image], check=True
    )
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_BYTES >> 30}
    (BOX / "metadata.json").write_text(json.dumps(metadata))
    (BOX / "Vagrantfile").write_text("")
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for name in ("metadata.json", "Vagrantfile", "box.img"):
            archive.add(BOX / name, name)
    image.unlink()
    return target
