"""Chooses the driver from what is mounted; never configured (design: cgroups).

v2 where its hierarchy has the controllers, else v1. A hybrid host (v1 controllers, an empty v2
tree) is v1. Under systemd as PID 1 the subtree is one that it delegates (`systemd`).
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from msgspec import Struct

from fargatelite.cgroups import systemd, v1, v2
from fargatelite.cgroups.cgroup import Driver
from fargatelite.errors import HostUnsupported

__all__ = ["CgroupMounts", "choose_driver", "detect_driver", "parse_mounts", "parse_own_groups"]


class _Mount(Struct, frozen=True, kw_only=True):
    """One mounted hierarchy: `root` is the group that `point` shows, `/` for all."""

    root: str
    point: str


class CgroupMounts(Struct, frozen=True, kw_only=True):
    """What mountinfo says about cgroups: v1 mounts by controller, and the v2 mount."""

    v1: dict[str, _Mount]
    v2: _Mount | None


def parse_mounts(mountinfo: str) -> CgroupMounts:
    """The hierarchies in the text of /proc/PID/mountinfo (proc_pid_mountinfo(5)).

    Of several mounts of one hierarchy the first counts.
    """
    by_controller: dict[str, _Mount] = {}
    unified: _Mount | None = None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        if rest[0] == "cgroup2":
            unified = unified or _Mount(root=_unescape(fields[3]), point=_unescape(fields[4]))
        elif rest[0] == "cgroup":
            mount = _Mount(root=_unescape(fields[3]), point=_unescape(fields[4]))
            for option in rest[2].split(","):
                if option in (*v1.CONTROLLERS, v1.BLOCK_IO):
                    by_controller.setdefault(option, mount)
    return CgroupMounts(v1=by_controller, v2=unified)


def parse_own_groups(text: str) -> dict[str, str]:
    """Controller (`""` for v2) to group of a process, from /proc/PID/cgroup (cgroups(7))."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = group
    return groups


def detect_driver() -> Driver:
    """The driver for this host, found once per process and mount namespace: each task adds mounts,
    and reading 1,000 of them takes 2 ms.

    Raises: HostUnsupported naming the controllers that are missing or not writable.
    """
    return _driver_in(os.stat("/proc/self/ns/mnt").st_ino)


@functools.cache
def _driver_in(mount_namespace: int) -> Driver:
    return choose_driver(
        Path("/proc/self/mountinfo").read_text(),
        Path("/proc/self/cgroup").read_text(),
        has_systemd=None,
    )


def choose_driver(mountinfo: str, own_cgroup: str, *, has_systemd: bool | None) -> Driver:
    """The driver for a process with these files of proc(5); `has_systemd` None: look.

    Raises: as `detect_driver`.
    """
    mounts, own = parse_mounts(mountinfo), parse_own_groups(own_cgroup)
    root: str | None = None
    if mounts.v2 is not None:
        root = _writable_root(mounts.v2, own.get("", "/"))
        if root is not None:
            available = Path(root, "cgroup.controllers").read_text().split()
            if set(v2.CONTROLLERS) <= set(available):
                if systemd.is_running() if has_systemd is None else has_systemd:
                    claim = functools.partial(systemd.claim_subtree, root)
                    shelter = functools.partial(systemd.shelter, root)
                    return v2.V2Driver(systemd.subtree(root), claim, shelter)
                return v2.V2Driver(root)
    missing = [name for name in v1.CONTROLLERS if name not in mounts.v1]
    if missing and mounts.v2 is not None and root is None:
        raise HostUnsupported(
            f"the cgroup v2 hierarchy at {mounts.v2.point} is not writable: fargatelite needs root "
            f"and, in a container, a writable cgroup file system (--privileged --cgroupns=private)",
            path=mounts.v2.point,
        )
    if missing:
        raise HostUnsupported(
            f"no usable cgroup controllers: cgroup v2 lacks one of {', '.join(v2.CONTROLLERS)} and "
            f"cgroup v1 lacks {', '.join(missing)}: mount cgroup2 at /sys/fs/cgroup"
        )
    roots: dict[str, str] = {}
    for name in v1.CONTROLLERS:
        root = _writable_root(mounts.v1[name], own.get(name, "/"))
        if root is None:
            raise HostUnsupported(
                f"the cgroup v1 hierarchy {name} at {mounts.v1[name].point} is not writable: "
                f"fargatelite needs root and a writable hierarchy",
                path=mounts.v1[name].point,
            )
        roots[name] = root
    if v1.BLOCK_IO in mounts.v1:
        root = _writable_root(mounts.v1[v1.BLOCK_IO], own.get(v1.BLOCK_IO, "/"))
        if root is not None:
            roots[v1.BLOCK_IO] = root
    return v1.V1Driver(roots)


def _writable_root(mount: _Mount, own_group: str) -> str | None:
    """The mount's top, else our own group in it, whichever is writable first.

    The top is preferred: a supervisor may itself sit in a limited group, and its tasks' limits are
    theirs alone.
    """
    if os.access(mount.point, os.W_OK):
        return mount.point
    relative = os.path.relpath(own_group, mount.root)
    own = os.path.normpath(f"{mount.point}/{relative}")
    if not relative.startswith("..") and os.access(own, os.W_OK):
        return own
    return None


def _unescape(text: str) -> str:
    """mountinfo's octal escapes for blank, tab, newline and backslash."""
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, character)
    return text
