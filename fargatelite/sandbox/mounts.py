"""Volumes and tmpfs mounts of a container, as operations.

They are mounted below the runtime's own: a target that an image's link leads into /proc or /sys is
covered by what is mounted there afterwards (CVE-2019-16884, CVE-2021-30465), so nothing that a user
mounts can stand in for procfs. Targets in /dev come after /dev, which would hide them.
"""

from __future__ import annotations

import re

import msgspec

from fargatelite.errors import SandboxFailed
from fargatelite.sandbox.plan import Op, op

__all__ = [
    "TmpfsMount",
    "VolumeMount",
    "compile_clones",
    "compile_id_maps",
    "compile_user_mounts",
    "parse_tmpfs",
]

# include/uapi/linux/mount.h
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
NOATIME, STRICTATIME, NODIRATIME = 0x10, 0x20, 0x80
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10
IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS

_TMPFS_MODE = "1777"  # Docker's, for a tmpfs that names none
_ATTRIBUTES = {
    "ro": (RDONLY, 0), "rw": (0, RDONLY),
    "nosuid": (NOSUID, 0), "suid": (0, NOSUID),
    "nodev": (NODEV, 0), "dev": (0, NODEV),
    "noexec": (NOEXEC, 0), "exec": (0, NOEXEC),
    "noatime": (NOATIME, STRICTATIME), "atime": (0, NOATIME),
    "strictatime": (STRICTATIME, NOATIME), "nostrictatime": (0, STRICTATIME),
    "nodiratime": (NODIRATIME, 0), "diratime": (0, NODIRATIME),
}  # fmt: skip
# Of the superblock, or without a meaning for a file system in memory that nobody else mounts:
# Docker and runc take them too, and a tmpfs behaves the same with and without.
_WITHOUT_EFFECT = frozenset(
    """defaults sync async dirsync remount mand nomand relatime norelatime bind rbind unbindable
    runbindable private rprivate shared rshared slave rslave""".split()
)
_NUMBER = re.compile(r"\d{1,10}", re.ASCII)
_OCTAL = re.compile(r"[0-7]{1,4}", re.ASCII)
_SIZE = re.compile(r"\d{1,15}[kKmMgG]?", re.ASCII)
_POLICY = re.compile(r"[a-z0-9:,=-]{1,64}", re.ASCII)


class VolumeMount(msgspec.Struct, frozen=True, kw_only=True):
    """A directory (or file) of the host at `target` of a container.

    Its ids are the task's, or with `is_mapped` the host's, seen in the container as they are there.
    With `owner` (uid, gid) this one on disk is the container's user and nobody else is anybody:
    how an EFS access point works.
    """

    source: str
    target: str
    read_only: bool = False
    is_mapped: bool = False
    is_file: bool = False
    owner: tuple[int, int] | None = None


class TmpfsMount(msgspec.Struct, frozen=True, kw_only=True):
    """A file system in memory at `target`. `options` are tmpfs' own, ids are the container's."""

    target: str
    size_mib: int
    attributes: int
    mode: str = _TMPFS_MODE
    uid: int = 0
    gid: int = 0
    options: tuple[str, ...] = ()


def parse_tmpfs(target: str, size_mib: int, mount_options: tuple[str, ...]) -> TmpfsMount:
    """A definition's tmpfs entry; nosuid, nodev and noexec unless it says otherwise, as Docker.

    Raises: SandboxFailed for an option's value that tmpfs(5) does not take.
    Source: contract 2.7.
    """
    attributes = NOSUID | NODEV | NOEXEC
    mode, uid, gid = _TMPFS_MODE, 0, 0
    kept = []
    for option in mount_options:
        name, _, value = option.partition("=")
        if name in _ATTRIBUTES and not value:
            on, off = _ATTRIBUTES[name]
            attributes = attributes & ~off | on
        elif name in _WITHOUT_EFFECT and not value:
            continue
        elif name == "mode" and _OCTAL.fullmatch(value):
            mode = value
        elif name in ("uid", "gid") and _NUMBER.fullmatch(value) and int(value) < 65536:
            uid, gid = (int(value), gid) if name == "uid" else (uid, int(value))
        elif (name in ("nr_inodes", "nr_blocks") and _SIZE.fullmatch(value)) or (
            name == "mpol" and _POLICY.fullmatch(value)
        ):
            kept.append(option)
        else:
            raise SandboxFailed(
                f"tmpfs at {target}: mount option {option!r} is not one that tmpfs takes"
            )
    return TmpfsMount(
        target=target, size_mib=size_mib, attributes=attributes, mode=mode, uid=uid, gid=gid,
        options=tuple(kept),
    )  # fmt: skip


def _owners(volumes: tuple[VolumeMount, ...]) -> list[tuple[int, int]]:
    return list(dict.fromkeys(volume.owner for volume in volumes if volume.owner is not None))


def compile_id_maps(volumes: tuple[VolumeMount, ...], host_uid: int, host_gid: int) -> list[Op]:
    """Before the process exists: a map for each owner; `host_uid` is the container's user, as the
    host counts."""
    return [
        op("id_map", number, uid, host_uid, gid, host_gid)
        for number, (uid, gid) in enumerate(_owners(volumes))
    ]


def compile_clones(volumes: tuple[VolumeMount, ...], first_slot: int) -> list[Op]:
    """Before the root is changed: each volume's directory, cloned into a slot of its own."""
    owners = _owners(volumes)

    def id_map(volume: VolumeMount) -> int:
        return 2 + owners.index(volume.owner) if volume.owner else int(volume.is_mapped)

    return [
        op(
            "open_tree",
            slot,
            volume.source,
            NODEV | (RDONLY if volume.read_only else 0),
            id_map(volume),
            0,
        )
        for slot, volume in enumerate(volumes, first_slot)
    ]


def _depth(target: str) -> int:
    return len([part for part in target.split("/") if part not in ("", ".")])


def _is_in_dev(target: str) -> bool:
    return [part for part in target.split("/") if part not in ("", ".")][:1] == ["dev"]


def compile_user_mounts(
    volumes: tuple[VolumeMount, ...],
    tmpfs: tuple[TmpfsMount, ...],
    first_slot: int,
    id_base: int,
    *,
    in_dev: bool,
) -> list[Op]:
    """After the root is changed: the mounts with targets in /dev, or all others; an outer one
    before what lies in it."""
    mounts: list[tuple[str, list[Op]]] = []
    for slot, volume in enumerate(volumes, first_slot):
        mounts.append(
            (
                volume.target,
                [
                    op(
                        "touch" if volume.is_file else "mkdir",
                        volume.target,
                        0o755,
                        id_base,
                        id_base,
                        IN_ROOT,
                    ),
                    op("move_mount", slot, volume.target, IN_ROOT),
                ],
            )
        )
    for item in tmpfs:
        options = (
            f"size={item.size_mib}m", f"mode={item.mode}",
            f"uid={id_base + item.uid}", f"gid={id_base + item.gid}", *item.options,
        )  # fmt: skip
        mounts.append(
            (
                item.target,
                [
                    op("mkdir", item.target, 0o755, id_base, id_base, IN_ROOT),
                    op("mount", "tmpfs", "tmpfs", item.target, item.attributes, IN_ROOT, options),
                ],
            )
        )
    mounts = [(target, ops) for target, ops in mounts if _is_in_dev(target) == in_dev]
    return [item for _, ops in sorted(mounts, key=lambda pair: _depth(pair[0])) for item in ops]
