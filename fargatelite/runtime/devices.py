"""Devices of the host that a container of launch type EC2 asks for: their nodes and group rules."""

from __future__ import annotations

import os
import stat

from fargatelite.cgroups.devices import ALLOWED, DeviceRule
from fargatelite.errors import SandboxFailed
from fargatelite.sandbox.rootfs import DeviceNode
from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition

__all__ = ["container_rules", "find_devices", "task_rules"]

_LETTERS = {"read": "r", "write": "w", "mknod": "m"}
_ID_COUNT = 65536


def _look_up(path: str) -> os.stat_result:
    try:
        info = os.stat(path)
    except OSError as error:
        raise SandboxFailed(
            f"cannot give device {path} to a container: {error.strerror}", errno=error.errno,
            path=path,
        ) from error  # fmt: skip
    if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        raise SandboxFailed(f"cannot give {path} to a container: it is no device", path=path)
    return info


def find_devices(container: ContainerDefinition) -> tuple[DeviceNode, ...]:
    """The nodes to make in the container, with owner and mode as on the host, as Docker does.

    Raises: SandboxFailed for a path that is no device of this host.
    """
    linux = container.linux_parameters
    nodes = []
    for device in linux.devices if linux is not None else ():
        info = _look_up(device.host_path)
        nodes.append(
            DeviceNode(
                path=device.container_path or device.host_path,
                mode=info.st_mode,
                major=os.major(info.st_rdev),
                minor=os.minor(info.st_rdev),
                uid=info.st_uid if info.st_uid < _ID_COUNT else 0,
                gid=info.st_gid if info.st_gid < _ID_COUNT else 0,
            )
        )
    return tuple(nodes)


def container_rules(container: ContainerDefinition) -> tuple[DeviceRule, ...]:
    """What the container's group allows beside Docker's list; all three accesses by default.

    Raises: SandboxFailed.
    """
    linux = container.linux_parameters
    letters: dict[tuple[str, int, int], str] = {}
    for device in linux.devices if linux is not None else ():
        info = _look_up(device.host_path)
        key = (
            "b" if stat.S_ISBLK(info.st_mode) else "c",
            os.major(info.st_rdev),
            os.minor(info.st_rdev),
        )
        asked = device.permissions or tuple(_LETTERS)
        letters[key] = letters.get(key, "") + "".join(_LETTERS[word] for word in asked)
    known = {(rule.kind, rule.major, rule.minor) for rule in ALLOWED}
    return tuple(
        DeviceRule(
            kind=kind, major=major, minor=minor,
            access="".join(letter for letter in "rwm" if letter in asked),
        )
        for (kind, major, minor), asked in letters.items()
        if (kind, major, minor) not in known
    )  # fmt: skip


def task_rules(definition: TaskDefinition) -> tuple[DeviceRule, ...]:
    """What the task's group must allow for its containers' to be able to. Raises: SandboxFailed."""
    found = {
        (rule.kind, rule.major, rule.minor): DeviceRule(
            kind=rule.kind, major=rule.major, minor=rule.minor, access="rwm"
        )
        for container in definition.containers
        for rule in container_rules(container)
    }
    return tuple(found.values())
