"""A task's volumes: which a container mounts where, and their directories on this host.

A volume lies beside the writable layers and goes with the task. It is made at its first use: owned
by the task's root with mode 0755, or, where the image declares a VOLUME at exactly that path, with
what the image has there (contract 2.6).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from fargatelite.images.image import Image
from fargatelite.names import TaskId
from fargatelite.network.slot import Slot
from fargatelite.sandbox.mounts import VolumeMount
from fargatelite.settings import Settings
from fargatelite.storage.efs import is_nfs, mounted_at, owner_of
from fargatelite.taskdef.fields import ContainerDefinition, EfsVolume, TaskDefinition

__all__ = ["MountedVolume", "list_mounts", "prepare_volumes"]

Unpack = Callable[[Image, str, Path, int], bool]

_WITHOUT_ID_MAPS = frozenset(
    {
        "proc", "sysfs", "cgroup", "cgroup2", "devtmpfs", "devpts", "debugfs", "tracefs",
        "securityfs", "pstore", "bpf", "configfs", "efivarfs", "mqueue",
    }
)  # fmt: skip
"""The kernel's own views, which no kernel mounts with mapped ids (mount_setattr(2))."""


class MountedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume at a path of one container. `volume` is a name of the definition's `volumes`, or
    `<container>:<path>` for one that only an image declares."""

    volume: str
    target: str
    read_only: bool
    container: str
    """Whose mount it is, and whose image may have contents for it: with `volumesFrom` another's."""
    source_path: str | None = None
    """A directory or file of the host (EC2's host.sourcePath)."""
    efs: EfsVolume | None = None


def _image_volumes(container: ContainerDefinition, image: Image | None) -> list[MountedVolume]:
    return [
        MountedVolume(
            volume=f"{container.name}:{path}",
            target=path,
            read_only=False,
            container=container.name,
        )
        for path in (posixpath.normpath(item) for item in (image.config.volumes if image else ()))
        if path.startswith("/") and path != "/"
    ]


def list_mounts(
    definition: TaskDefinition, container: ContainerDefinition, images: Mapping[str, Image | None]
) -> list[MountedVolume]:
    """What a container mounts: its own mount points before those of `volumesFrom`, the first one
    for a path counting. `images` by container name.

    A VOLUME of the image becomes a volume where that shows: for others that take it by
    `volumesFrom`, and under a read-only root; elsewhere it is a directory like any other.
    Source: contract 2.6, Docker's --volumes-from.
    """
    by_name = {item.name: item for item in definition.containers}
    sources = {
        item.name: item.host.source_path for item in definition.volumes if item.host is not None
    }
    systems = {item.name: item.efs for item in definition.volumes}
    taken_from = {
        item.source_container for other in definition.containers for item in other.volumes_from
    }

    def mounts_of(item: ContainerDefinition) -> dict[str, MountedVolume]:
        found: dict[str, MountedVolume] = {}
        for point in item.mount_points:
            target = posixpath.normpath(point.container_path or "/")
            found.setdefault(
                target,
                MountedVolume(
                    volume=point.source_volume or "",
                    target=target,
                    read_only=point.read_only,
                    container=item.name,
                    source_path=sources.get(point.source_volume),
                    efs=systems.get(point.source_volume),
                ),
            )
        for source in item.volumes_from:
            for mount in mounts_of(by_name[source.source_container or ""]).values():
                read_only = mount.read_only or source.read_only
                found.setdefault(mount.target, msgspec.structs.replace(mount, read_only=read_only))
        if item.name in taken_from or item.readonly_root_filesystem:
            for mount in _image_volumes(item, images.get(item.name)):
                found.setdefault(mount.target, mount)
        return found

    return list(mounts_of(container).values())


def _directory(settings: Settings, task_id: TaskId, volume: str) -> Path:
    # No container is named with a dot, and no volume of a definition with a slash or colon.
    return settings.layers / task_id / ".volumes" / volume.replace("/", ".")


def _takes_id_maps(path: Path) -> bool:
    """Whether the file system at `path` may be mounted with mapped ids."""
    number = path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    with open("/proc/self/mountinfo") as table:
        for line in table:
            own, _, system = line.partition(" - ")
            if own.split()[2] == device:
                return system.split()[0] not in _WITHOUT_ID_MAPS
    return True  # btrfs numbers its subvolumes by itself


def _host_mount(mount: MountedVolume) -> VolumeMount:
    """A path of the host with the host's ids: root of the container is root there, as on EC2. One
    that is not there becomes a directory, as Docker makes it. Mounts below it do not come along.

    In /proc, /sys and their like root of the container is one of the others: it reads what all may
    read, and changes nothing.
    """
    source = Path(os.path.realpath(mount.source_path or "/"))
    if not source.exists():
        source.mkdir(mode=0o755, parents=True)
    return VolumeMount(
        source=str(source),
        target=mount.target,
        read_only=mount.read_only,
        is_mapped=_takes_id_maps(source),
        is_file=not source.is_dir(),
    )


def _efs_mount(
    settings: Settings, task_id: TaskId, mount: MountedVolume, efs: EfsVolume
) -> VolumeMount:
    """What provisioning has mounted; ids in it are as they are there, or an access point's. Linux
    maps no ids of NFS: there the server says who everybody is."""
    is_mapped = not is_nfs(settings, efs)
    return VolumeMount(
        source=str(mounted_at(settings, task_id, mount.volume)),
        target=mount.target,
        read_only=mount.read_only,
        is_mapped=is_mapped,
        owner=owner_of(settings, mount.volume, efs) if is_mapped else None,
    )


def prepare_volumes(
    settings: Settings,
    task_id: TaskId,
    slot: Slot,
    mounts: list[MountedVolume],
    images: Mapping[str, Image | None],
    unpack: Unpack,
) -> tuple[VolumeMount, ...]:
    """Makes the volumes that are not there yet; the caller holds the task's volume lock.

    `unpack(image, path, target, id_base)` copies a directory of the image, and tells whether the
    image has one there.
    Raises: ImageError; OSError.
    """
    made = []
    for mount in mounts:
        if mount.source_path is not None:
            made.append(_host_mount(mount))
            continue
        if mount.efs is not None:
            made.append(_efs_mount(settings, task_id, mount, mount.efs))
            continue
        directory = _directory(settings, task_id, mount.volume)
        if not directory.is_dir():
            fresh = directory.with_name(f"{directory.name}.new")
            fresh.mkdir(mode=0o755, parents=True)
            image = images[mount.container]
            has_content = (
                image is not None
                and mount.target in map(posixpath.normpath, image.config.volumes)
                and unpack(image, mount.target, fresh, slot.uid_base)
            )
            if not has_content:
                os.chown(fresh, slot.uid_base, slot.uid_base)
                fresh.chmod(0o755)
            os.rename(fresh, directory)
        made.append(
            VolumeMount(source=str(directory), target=mount.target, read_only=mount.read_only)
        )
    return tuple(made)
