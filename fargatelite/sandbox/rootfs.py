"""The file system that a container sees, as operations.

Before `pivot_root` only paths of ours are touched; after it the old root is gone. Fixed mount
points are opened without following any link (CVE-2019-16884, -19921: an image whose /proc is a
link), paths that users name with RESOLVE_IN_ROOT.
"""

from __future__ import annotations

import posixpath
import stat

import msgspec

from fargatelite.sandbox.mounts import (
    TmpfsMount,
    VolumeMount,
    compile_clones,
    compile_user_mounts,
)
from fargatelite.sandbox.plan import Op, op

__all__ = ["TTY_GROUP", "DeviceNode", "Directories", "compile_mounts", "compile_root"]

# include/uapi/linux/openat2.h
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x02, 0x04, 0x10
IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS

# include/uapi/linux/mount.h
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8

IMAGE_SLOT = 0

# Docker's lists (contract 4.2).
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# Docker's default devices: name, major, minor.
DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
DEVICE_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
    ("pts/ptmx", "/dev/ptmx"),
)

SHM_BYTES = 64 * 1024 * 1024  # contract 4.3: Docker's default, not configurable on Fargate
DEV_BYTES = 65536 * 1024
_SHM = "/dev/shm"  # noqa: S108 - the container's, not a temporary file of ours
TTY_GROUP = 5  # gid of group tty in Debian, Fedora and Alpine: owner of pseudo terminals


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """A device of the host at `path`, below /dev; ids are the container's, `mode` has the type."""

    path: str
    mode: int
    major: int
    minor: int
    uid: int
    gid: int


class Directories(msgspec.Struct, frozen=True, kw_only=True):
    """Where the parts of a container's file system lie on the host (absolute paths).

    `container` holds `lower`, `upper`, `work` and `merged`; `image` is the host's mount of the
    image; `files` maps a path inside (`/etc/hosts`) to a file of ours; `groups` maps /sys/fs/cgroup
    (v2) or paths below it (v1) inside to the container's own group directory outside.
    """

    container: str
    image: str
    files: dict[str, str]
    groups: dict[str, str]
    volumes: tuple[VolumeMount, ...] = ()
    tmpfs: tuple[TmpfsMount, ...] = ()
    shm_bytes: int = SHM_BYTES
    devices: tuple[DeviceNode, ...] = ()

    @property
    def volume_slot(self) -> int:
        """The slot of the first volume, behind image, files and groups."""
        return IMAGE_SLOT + 1 + len(self.files) + len(self.groups)


def compile_root(directories: Directories) -> list[Op]:
    """Clone what comes from outside, mount the overlay, and make it the root."""
    ops = [op("private_mounts")]
    ops.append(op("open_tree", IMAGE_SLOT, directories.image, NODEV, 1, 0))
    outside = [*directories.files.values(), *directories.groups.values()]
    for slot, path in enumerate(outside, IMAGE_SLOT + 1):
        attributes = 0 if path in directories.files.values() else RDONLY | NOSUID | NODEV | NOEXEC
        ops.append(op("open_tree", slot, path, attributes, 0, 0))
    ops += compile_clones(directories.volumes, directories.volume_slot)
    ops.append(op("chdir", directories.container))
    ops.append(op("move_mount", IMAGE_SLOT, "lower", RESOLVE_NO_SYMLINKS))
    # Relative, so that no path of the host needs escaping. volatile (Linux 5.10): the layer goes
    # with the task, so nothing in it is worth an fsync.
    options = ("lowerdir=lower", "upperdir=upper", "workdir=work", "volatile")
    ops.append(op("mount", "overlay", "overlay", "merged", NODEV, RESOLVE_NO_SYMLINKS, options))
    ops.append(op("pivot_root", "merged"))
    return ops


def _system(path: str, base: int, mode: int = 0o755) -> Op:
    return op("mkdir", path, mode, base, base, RESOLVE_NO_SYMLINKS)


def _mount(kind: str, target: str, attributes: int, *options: str) -> Op:
    return op("mount", kind, kind, target, attributes, RESOLVE_NO_SYMLINKS, options)


def compile_mounts(
    directories: Directories,
    id_base: int,
    sysctls: tuple[tuple[str, str], ...] = (),
    *,
    is_unmasked: bool = False,
) -> list[Op]:
    """What lies over the image: the user's mounts, /proc, /sys, /dev, generated files, the own
    group; then the masks.

    `id_base` is the host's id of the container's root, the owner of all that is made here.
    `sysctls` are files below /proc/sys and their values, of namespaces that the task owns.
    """
    base, owner = id_base, (f"uid={id_base}", f"gid={id_base}")

    def user_mounts(*, in_dev: bool) -> list[Op]:
        return compile_user_mounts(
            directories.volumes, directories.tmpfs, directories.volume_slot, base, in_dev=in_dev
        )

    ops = user_mounts(in_dev=False)
    ops += [
        _system("/proc", base, 0o555),
        _mount("proc", "/proc", NOSUID | NODEV | NOEXEC),
        _system("/sys", base, 0o555),
        _mount("sysfs", "/sys", RDONLY | NOSUID | NODEV | NOEXEC),
        _system("/dev", base),
        _mount("tmpfs", "/dev", NOSUID | NOEXEC, "mode=755", f"size={DEV_BYTES}", *owner),
    ]
    for name, major, minor in DEVICES:
        ops.append(op("mknod", f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor, base, base))
    ops += [
        op("mkdir", "/dev/pts", 0o755, base, base, RESOLVE_NO_SYMLINKS),
        _mount(
            "devpts", "/dev/pts", NOSUID | NOEXEC,
            "newinstance", "ptmxmode=0666", "mode=0620", f"gid={base + TTY_GROUP}",
        ),
        op("mkdir", _SHM, 0o1777, base, base, RESOLVE_NO_SYMLINKS),
        _mount(
            "tmpfs", _SHM, NOSUID | NODEV | NOEXEC,
            "mode=1777", f"size={directories.shm_bytes}", *owner,
        ),
        op("mkdir", "/dev/mqueue", 0o1777, base, base, RESOLVE_NO_SYMLINKS),
        _mount("mqueue", "/dev/mqueue", NOSUID | NODEV | NOEXEC),
        *(op("symlink", target, path) for target, path in DEVICE_LINKS),
    ]  # fmt: skip
    for node in directories.devices:
        ops.append(_system(posixpath.dirname(node.path), base))
        ops.append(
            op("mknod", node.path, node.mode, node.major, node.minor,
               base + node.uid, base + node.gid)
        )  # fmt: skip
    slot = IMAGE_SLOT + 1
    for inside in directories.files:
        ops.append(op("touch", inside, 0o644, base, base, IN_ROOT))
        ops.append(op("move_mount", slot, inside, IN_ROOT))
        slot += 1
    if "/sys/fs/cgroup" in directories.groups:
        ops.append(op("move_mount", slot, "/sys/fs/cgroup", RESOLVE_NO_SYMLINKS))
    elif directories.groups:
        # sysfs has the directory; a tmpfs over it holds one mount point per controller.
        ops.append(_mount("tmpfs", "/sys/fs/cgroup", NOSUID | NODEV | NOEXEC, "mode=755", *owner))
        for inside in directories.groups:
            ops.append(op("mkdir", inside, 0o755, base, base, RESOLVE_NO_SYMLINKS))
            ops.append(op("move_mount", slot, inside, RESOLVE_NO_SYMLINKS))
            slot += 1
        ops.append(op("readonly", "/sys/fs/cgroup", 1))
    ops += user_mounts(in_dev=True)
    ops += [op("sysctl", path, value) for path, value in sysctls]
    if not is_unmasked:
        ops += [op("mask", path) for path in MASKED_PATHS]
        ops += [op("readonly", path, 1) for path in READONLY_PATHS]
    return ops
