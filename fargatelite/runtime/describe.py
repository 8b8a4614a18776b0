"""A task in the exact shape of DescribeTasks (contract 8.3). Pure."""

from __future__ import annotations

import functools
import re
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from fargatelite import names
from fargatelite.runtime.task import ContainerState, TaskState
from fargatelite.runtime.trace import Phase
from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition

__all__ = ["TaskFacts", "container_uuid", "describe_state_change", "describe_task"]

PLATFORM_VERSION = "1.4.0"  # contract 4.8
# Ours: what ECS would give an id of its own gets one derived from the task's.
_NO_ATTRIBUTE_NAME = re.compile(r"[^A-Za-z0-9_./-]+", re.ASCII)
_NAMESPACE = uuid.UUID("6f0c7c1e-5d0a-4d67-9b52-8f3c4c1c7d11")


class TaskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What RunTask was told, and what provisioning found out."""

    account: str
    region: str
    cluster: str
    group: str
    started_by: str | None = None
    tags: dict[str, str] = {}
    overrides: dict[str, Any] = {}
    launch_type: str = "FARGATE"
    enable_execute_command: bool = False
    private_ipv4_address: str | None = None
    mac_address: str | None = None
    private_dns_name: str | None = None
    subnet_id: str | None = None
    security_groups: dict[str, str] = {}
    """Ids by name. DescribeTasks has no member for them."""


def container_uuid(state: TaskState, name: str) -> str:
    """The last part of a container's ARN."""
    return _uuid(state.task_id, name)


@functools.lru_cache(maxsize=1024)  # each step of a task tells of all its parts
def _uuid(task_id: str, what: str) -> str:
    """A stable id of a part of a task that has none of its own."""
    return str(uuid.uuid5(_NAMESPACE, f"{task_id}/{what}"))


def _seconds(at_ns: int | None) -> float | None:
    """Timestamps are epoch seconds with fraction (contract 8.1)."""
    return None if at_ns is None else at_ns / 1e9


def _without_none(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


_ATTACHMENT_STATUS = {
    "PROVISIONING": "PRECREATED",
    "DEPROVISIONING": "DETACHING",
    "STOPPED": "DELETED",
}


def _local_subnet(task_id: str) -> str:
    return f"subnet-{_uuid(task_id, 'subnet')[-8:]}0000local"[:24]


def _attachment(state: TaskState, facts: TaskFacts) -> dict[str, Any]:
    details = [
        ("subnetId", facts.subnet_id or _local_subnet(state.task_id)),
        ("networkInterfaceId", f"eni-{state.task_id[:17]}"),
        ("macAddress", facts.mac_address),
        ("privateDnsName", facts.private_dns_name),
        ("privateIPv4Address", facts.private_ipv4_address),
    ]
    return {
        "id": _uuid(state.task_id, "eni"),
        "type": "ElasticNetworkInterface",
        "status": _ATTACHMENT_STATUS.get(str(state.last_status), "ATTACHED"),
        "details": [{"name": name, "value": value} for name, value in details if value],
    }


def _container(
    state: TaskState,
    item: ContainerState,
    definition: ContainerDefinition,
    number: int,
    facts: TaskFacts,
) -> dict[str, Any]:
    task_id = names.TaskId(state.task_id)
    shown = _without_none(
        {
            "containerArn": names.container_arn(
                facts.region,
                facts.account,
                facts.cluster,
                task_id,
                container_uuid(state, item.name),
            ),
            "taskArn": names.task_arn(facts.region, facts.account, facts.cluster, task_id),
            "name": item.name,
            "image": definition.image,
            "imageDigest": item.image_digest,
            "runtimeId": names.runtime_id(task_id, number)
            if item.started_at_ns is not None
            else None,
            "lastStatus": item.last_status,
            "exitCode": item.exit_code,
            "reason": item.reason,
            "networkBindings": [],
            "healthStatus": str(item.health_status),
            "cpu": str(definition.cpu_units),
            "memory": str(definition.memory_mib) if definition.memory_mib is not None else None,
            "memoryReservation": str(definition.memory_reservation_mib)
            if definition.memory_reservation_mib is not None
            else None,
        }
    )
    shown["networkInterfaces"] = (
        [
            {
                "attachmentId": _uuid(state.task_id, "eni"),
                "privateIpv4Address": facts.private_ipv4_address,
            }
        ]
        if facts.private_ipv4_address is not None
        else []
    )
    return shown


def _overrides(definition: TaskDefinition, facts: TaskFacts) -> dict[str, Any]:
    """Echoes the request; every container appears by name (contract 8.3)."""
    asked = {item.get("name"): item for item in facts.overrides.get("containerOverrides", []) or []}
    return {
        **{k: v for k, v in facts.overrides.items() if k != "containerOverrides"},
        "containerOverrides": [
            asked.get(container.name, {"name": container.name})
            for container in definition.containers
        ],
        "inferenceAcceleratorOverrides": [],
    }


def _size(definition: TaskDefinition) -> tuple[int, int]:
    """CPU units and MiB: the task's, or what its containers ask for where it has none (EC2)."""
    containers = definition.containers
    return (
        definition.cpu_units or sum(item.cpu_units for item in containers),
        definition.memory_mib
        or sum(item.memory_mib or item.memory_reservation_mib or 0 for item in containers),
    )


def _attributes(
    definition: TaskDefinition, facts: TaskFacts, phases: tuple[Phase, ...]
) -> list[dict[str, Any]]:
    """The architecture as on Fargate, security groups and where the time of the launch went:
    DescribeTasks has no members for these, and attributes may have any name."""
    architecture = {"X86_64": "x86_64", "ARM64": "arm64"}[definition.cpu_architecture]
    return [
        {"name": "ecs.cpu-architecture", "value": architecture},
        *(
            {"name": "fargatelite.security-group", "value": f"{name} ({group_id})"}
            for name, group_id in facts.security_groups.items()
        ),
        *(
            {
                "name": f"fargatelite.phase-us.{_NO_ATTRIBUTE_NAME.sub('-', phase.name)}",
                "value": str(phase.duration_us),
            }
            for phase in sorted(phases, key=lambda phase: phase.started_us)
        ),
    ]


def describe_task(
    state: TaskState,
    definition: TaskDefinition,
    facts: TaskFacts,
    phases: tuple[Phase, ...] = (),
) -> dict[str, Any]:
    """The task as DescribeTasks shows it; members that have no value are absent."""
    task_id = names.TaskId(state.task_id)
    # The service has its agent's word while it is connected: from the slot on.
    is_connected = str(state.last_status) not in ("PROVISIONING",)
    is_fargate = facts.launch_type == "FARGATE"
    return _without_none(
        {
            "attachments": [_attachment(state, facts)]
            if definition.network_mode == "awsvpc"
            else [],
            "attributes": _attributes(definition, facts, phases),
            "availabilityZone": f"{facts.region}a",
            "clusterArn": names.cluster_arn(facts.region, facts.account, facts.cluster),
            "connectivity": "CONNECTED" if is_connected else None,
            "connectivityAt": _seconds(state.created_at_ns) if is_connected else None,
            "containers": [
                _container(state, item, definition.containers[number], number, facts)
                for number, item in enumerate(state.containers)
            ],
            "cpu": str(_size(definition)[0]),
            "createdAt": _seconds(state.created_at_ns),
            "desiredStatus": state.desired_status,
            "enableExecuteCommand": facts.enable_execute_command,
            "ephemeralStorage": {"sizeInGiB": definition.ephemeral_storage_gib},
            "fargateEphemeralStorage": {"sizeInGiB": definition.ephemeral_storage_gib}
            if is_fargate
            else None,
            "executionStoppedAt": _seconds(state.execution_stopped_at_ns),
            "group": facts.group,
            "healthStatus": str(state.health_status),
            "inferenceAccelerators": [],
            "lastStatus": str(state.last_status),
            "launchType": facts.launch_type,
            "memory": str(_size(definition)[1]),
            "overrides": _overrides(definition, facts),
            "platformFamily": "Linux" if is_fargate else None,
            "platformVersion": PLATFORM_VERSION if is_fargate else None,
            "pullStartedAt": _seconds(state.pull_started_at_ns),
            "pullStoppedAt": _seconds(state.pull_stopped_at_ns),
            "startedAt": _seconds(state.started_at_ns),
            "startedBy": facts.started_by,
            "stopCode": state.stop_code,
            "stoppedAt": _seconds(state.stopped_at_ns),
            "stoppedReason": state.stopped_reason,
            "stoppingAt": _seconds(state.stopping_at_ns),
            "tags": [{"key": key, "value": value} for key, value in facts.tags.items()],
            "taskArn": names.task_arn(facts.region, facts.account, facts.cluster, task_id),
            "taskDefinitionArn": names.task_definition_arn(
                facts.region, facts.account, definition.family, definition.revision
            ),
            "version": state.version,
        }
    )


_TIMES = (
    *("connectivityAt", "createdAt", "executionStoppedAt", "pullStartedAt", "pullStoppedAt"),
    *("startedAt", "stoppedAt", "stoppingAt"),
)


def _iso(at_ns: int) -> str:
    """`2026-11-25T07:00:00.123Z`, as EventBridge has times."""
    at = datetime.fromtimestamp(at_ns / 1e9, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def describe_state_change(
    state: TaskState, definition: TaskDefinition, facts: TaskFacts, at_ns: int
) -> dict[str, Any]:
    """The `ECS Task State Change` that EventBridge would deliver for this version of the task.

    Its id follows from task and version, so that who reads it twice can tell (delivery is at least
    once there). Source: contract 8.8.
    """
    task = describe_task(state, definition, facts)
    for name in _TIMES:
        if name in task:
            task[name] = _iso(round(task[name] * 1e9))
    task["attachments"] = [{**item, "type": "eni"} for item in task["attachments"]]
    task["updatedAt"] = _iso(at_ns)
    return {
        "version": "0",
        "id": _uuid(state.task_id, f"version {state.version}"),
        "detail-type": "ECS Task State Change",
        "source": "aws.ecs",
        "account": facts.account,
        "time": _iso(at_ns),
        "region": facts.region,
        "resources": [task["taskArn"]],
        "detail": task,
    }
