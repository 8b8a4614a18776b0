"""Ids, digests and ARNs, and every name that is derived from them.

All names of a task's kernel objects derive from its id, so `gc` finds them after any crash without
a list (design: "Any task can change hands").
"""

from __future__ import annotations

import os
import re
from typing import NewType

from fargatelite.errors import StateCorrupt

__all__ = [
    "CGROUP_ROOT",
    "INTERFACE_PREFIX",
    "ContainerArn",
    "DiffId",
    "Digest",
    "TaskId",
    "arn_task_id",
    "cgroup_path",
    "cluster_arn",
    "container_arn",
    "interface_name",
    "is_digest",
    "new_task_id",
    "parse_task_id",
    "runtime_id",
    "task_arn",
    "task_definition_arn",
]

TaskId = NewType("TaskId", str)
"""32 lower-case hex characters, as in Fargate's long ARN format (contract 8.2)."""

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex characters, of bytes as a registry serves them."""

DiffId = NewType("DiffId", str)
"""`sha256:` and 64 lower-case hex characters, of a layer's uncompressed tar stream."""

ContainerArn = NewType("ContainerArn", str)

CGROUP_ROOT = "fargatelite"
"""The project's own group in each hierarchy; all others are below it."""

INTERFACE_PREFIX = "flt"
"""Host ends of veth pairs: prefix and 11 hex characters of the task id (IFNAMSIZ - 1 = 15)."""

_TASK_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def new_task_id() -> TaskId:
    """A random task id."""
    return TaskId(os.urandom(16).hex())  # as secrets.token_hex, whose import costs 4 ms


def parse_task_id(text: str) -> TaskId:
    """The id that `text` spells in full.

    Raises: StateCorrupt when it is not 32 lower-case hex characters.
    """
    if not _TASK_ID.fullmatch(text):
        raise StateCorrupt(f"{text!r} is not a task id (32 lower-case hex characters)")
    return TaskId(text)


def is_task_id(text: str) -> bool:
    """Whether `text` spells a task id in full."""
    return _TASK_ID.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether `text` is a digest that we accept: sha256, lower-case, of full length."""
    return _DIGEST.fullmatch(text) is not None


def cgroup_path(task_id: TaskId, container: str | None = None) -> str:
    """The group of a task, or of one container of it, relative to a hierarchy's mount point."""
    task = f"{CGROUP_ROOT}/{task_id}"
    return f"{task}/{container}" if container is not None else task


def interface_name(task_id: TaskId) -> str:
    """The name of the host end of a task's veth pair."""
    return INTERFACE_PREFIX + task_id[:11]


def cluster_arn(region: str, account: str, cluster: str) -> str:
    """Contract 8.2."""
    return f"arn:aws:ecs:{region}:{account}:cluster/{cluster}"


def task_arn(region: str, account: str, cluster: str, task_id: TaskId) -> str:
    """Contract 8.2, the long format."""
    return f"arn:aws:ecs:{region}:{account}:task/{cluster}/{task_id}"


def task_definition_arn(region: str, account: str, family: str, revision: int) -> str:
    """Contract 8.2."""
    return f"arn:aws:ecs:{region}:{account}:task-definition/{family}:{revision}"


def container_arn(
    region: str, account: str, cluster: str, task_id: TaskId, container_uuid: str
) -> ContainerArn:
    """Contract 8.2; `container_uuid` is a UUID in text form."""
    return ContainerArn(
        f"arn:aws:ecs:{region}:{account}:container/{cluster}/{task_id}/{container_uuid}"
    )


def runtime_id(task_id: TaskId, index: int) -> str:
    """A container's runtimeId: task id, dash, ten digits (contract 4.7, 8.2)."""
    return f"{task_id}-{index:010d}"


def arn_task_id(text: str) -> str:
    """The (possibly shortened) id within `text`, which is an id or a task ARN."""
    return text.rsplit("/", 1)[-1] if text.startswith("arn:") else text
