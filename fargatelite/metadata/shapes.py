"""What the task metadata endpoint answers about a task and its containers. Pure.

Promises exactly the members of contract 5.2 and 5.3: one without a value is absent, never null.
Knows nothing of where facts come from: the caller fills `MetadataTask`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

__all__ = [
    "ClockDrift",
    "EphemeralStorage",
    "HealthFacts",
    "MetadataContainer",
    "MetadataTask",
    "MetadataVolume",
    "Networks",
    "PortMapping",
    "TagError",
    "container_response",
    "format_time",
    "task_response",
]

_LEAST_CPU_UNITS = 2
"""What the agent shows for a container whose definition says 0 (contract 5.3)."""

_V4_TASK_ONLY = (
    "LaunchType",
    "ServiceName",
    "Group",
    "ClockDrift",
    "EphemeralStorageMetrics",
    "FaultInjectionEnabled",
    "AvailabilityZoneID",
    "Errors",
)
_V4_CONTAINER_ONLY = (
    "LogDriver",
    "LogOptions",
    "ContainerARN",
    "Snapshotter",
    "RestartCount",
)
_V4_NETWORK_ONLY = (
    "AttachmentIndex",
    "MACAddress",
    "IPv4SubnetCIDRBlock",
    "IPv6SubnetCIDRBlock",
    "DomainNameServers",
    "DomainNameSearchList",
    "PrivateDNSName",
    "SubnetGatewayIpv4Address",
    "SubnetGatewayIpv6Address",
)


class PortMapping(Struct, frozen=True, kw_only=True):
    """One published port; `host_ip` only where an address of the host was chosen."""

    container_port: int
    protocol: str = "tcp"
    host_port: int | None = None
    host_ip: str | None = None


class Networks(Struct, frozen=True, kw_only=True):
    """The task's interface, the same for each of its containers (contract 5.3)."""

    network_mode: str = "awsvpc"
    ipv4_addresses: tuple[str, ...] = ()
    ipv6_addresses: tuple[str, ...] = ()
    attachment_index: int = 0
    mac_address: str | None = None
    ipv4_subnet_cidr_block: str | None = None
    ipv6_subnet_cidr_block: str | None = None
    domain_name_servers: tuple[str, ...] = ()
    domain_name_search_list: tuple[str, ...] = ()
    private_dns_name: str | None = None
    subnet_gateway_ipv4_address: str | None = None
    """With the subnet's prefix length: `172.31.192.1/20`."""
    subnet_gateway_ipv6_address: str | None = None


class HealthFacts(Struct, frozen=True, kw_only=True):
    """The newest verdict of a container's health check."""

    status: str
    status_since_ns: int | None = None
    exit_code: int | None = None
    output: str | None = None


class MetadataVolume(Struct, frozen=True, kw_only=True):
    """A volume as the container has it mounted at `destination`."""

    docker_name: str | None = None
    source: str | None = None
    destination: str


class MetadataContainer(Struct, frozen=True, kw_only=True):
    """All that the endpoint tells about one container; times are ns since 1970."""

    runtime_id: str
    """DockerId, and the `<id>` of the container's own URLs."""
    name: str
    image: str
    image_id: str | None = None
    ports: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = {}
    desired_status: str
    known_status: str
    exit_code: int | None = None
    cpu_units: int = 0
    """As the definition says; shown as 2 when it is less."""
    memory_mib: int | None = None
    created_at_ns: int | None = None
    started_at_ns: int | None = None
    finished_at_ns: int | None = None
    networks: Networks | None = None
    """None until the task has its interface."""
    health: HealthFacts | None = None
    """Only with a health check."""
    volumes: tuple[MetadataVolume, ...] = ()
    log_driver: str | None = None
    log_options: dict[str, str] = {}
    """Never secretOptions: a log driver's token is not the container's to read."""
    container_arn: str | None = None
    snapshotter: str | None = None
    restart_count: int | None = None
    """Only with an enabled restartPolicy."""


class ClockDrift(Struct, frozen=True, kw_only=True):
    """How far the host's clock may be off."""

    clock_error_bound_ms: float
    reference_timestamp_ns: int
    is_synchronized: bool


class EphemeralStorage(Struct, frozen=True, kw_only=True):
    """The task's storage, in MiB."""

    utilized_mib: int
    reserved_mib: int


class TagError(Struct, frozen=True, kw_only=True):
    """Why `taskWithTags` has no tags (agent: ListTagsForResource was refused)."""

    error_field: str
    error_code: str
    error_message: str
    status_code: int
    request_id: str
    resource_arn: str


class MetadataTask(Struct, frozen=True, kw_only=True):
    """All that the endpoint tells about a task; times are ns since 1970."""

    cluster_arn: str
    task_arn: str
    family: str
    revision: int
    desired_status: str
    known_status: str
    containers: tuple[MetadataContainer, ...]
    cpu_units: int
    memory_mib: int
    pull_started_at_ns: int | None = None
    pull_stopped_at_ns: int | None = None
    execution_stopped_at_ns: int | None = None
    availability_zone: str | None = None
    availability_zone_id: str | None = None
    launch_type: str = "FARGATE"
    service_name: str | None = None
    """Only for a service's task."""
    group: str | None = None
    tags: dict[str, str] = {}
    container_instance_tags: dict[str, str] = {}
    tag_errors: tuple[TagError, ...] = ()
    clock_drift: ClockDrift | None = None
    ephemeral_storage: EphemeralStorage | None = None
    is_fault_injection_enabled: bool = False


def format_time(at_ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds, trailing zeros cut as Go's RFC3339Nano does."""
    seconds, fraction_ns = divmod(at_ns, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{fraction_ns:09d}".rstrip("0")
    return f"{whole}.{fraction}Z" if fraction else f"{whole}Z"


def _time(at_ns: int | None) -> str | None:
    return None if at_ns is None else format_time(at_ns)


def _present(members: dict[str, Any]) -> dict[str, Any]:
    """Go's omitempty for what we give: None and empty collections are absent, 0 and "" stay."""
    return {k: v for k, v in members.items() if v is not None and v not in ((), [], {})}


def _network(networks: Networks, version: int) -> dict[str, Any]:
    shown = _present(
        {
            "NetworkMode": networks.network_mode,
            "IPv4Addresses": list(networks.ipv4_addresses),
            "IPv6Addresses": list(networks.ipv6_addresses),
            "AttachmentIndex": networks.attachment_index,
            "MACAddress": networks.mac_address,
            "IPv4SubnetCIDRBlock": networks.ipv4_subnet_cidr_block,
            "IPv6SubnetCIDRBlock": networks.ipv6_subnet_cidr_block,
            "DomainNameServers": list(networks.domain_name_servers),
            "DomainNameSearchList": list(networks.domain_name_search_list),
            "PrivateDNSName": networks.private_dns_name,
            "SubnetGatewayIpv4Address": networks.subnet_gateway_ipv4_address,
            "SubnetGatewayIpv6Address": networks.subnet_gateway_ipv6_address,
        }
    )
    return shown if version == 4 else _without(shown, _V4_NETWORK_ONLY)


def _without(members: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in names}


def _port(port: PortMapping) -> dict[str, Any]:
    return _present(
        {
            "ContainerPort": port.container_port,
            "Protocol": port.protocol,
            "HostPort": port.host_port,
            "HostIp": port.host_ip,
        }
    )


def container_response(container: MetadataContainer, *, version: int) -> dict[str, Any]:
    """ContainerResponse (contract 5.3) of endpoint version 3 or 4."""
    health = container.health
    shown = _present(
        {
            "DockerId": container.runtime_id,
            "Name": container.name,
            "DockerName": container.name,
            "Image": container.image,
            "ImageID": container.image_id,
            "Ports": [_port(port) for port in container.ports],
            "Labels": container.labels,
            "DesiredStatus": container.desired_status,
            "KnownStatus": container.known_status,
            "ExitCode": container.exit_code,
            "Limits": _present(
                {
                    "CPU": max(container.cpu_units, _LEAST_CPU_UNITS),
                    "Memory": container.memory_mib,
                }
            ),
            "CreatedAt": _time(container.created_at_ns),
            "StartedAt": _time(container.started_at_ns),
            "FinishedAt": _time(container.finished_at_ns),
            "Type": "NORMAL",
            "Networks": [_network(container.networks, version)] if container.networks else [],
            "Health": None
            if health is None
            else _present(
                {
                    "status": health.status,
                    "statusSince": _time(health.status_since_ns),
                    "exitCode": health.exit_code,
                    "output": health.output,
                }
            ),
            "Volumes": [
                _present(
                    {
                        "DockerName": volume.docker_name,
                        "Source": volume.source,
                        "Destination": volume.destination,
                    }
                )
                for volume in container.volumes
            ],
            "LogDriver": container.log_driver,
            "LogOptions": container.log_options,
            "ContainerARN": container.container_arn,
            "Snapshotter": container.snapshotter,
            "RestartCount": container.restart_count,
        }
    )
    return shown if version == 4 else _without(shown, _V4_CONTAINER_ONLY)


def task_response(task: MetadataTask, *, version: int, with_tags: bool = False) -> dict[str, Any]:
    """TaskResponse (contract 5.2) of endpoint version 3 or 4, with tags for `taskWithTags`."""
    drift, storage = task.clock_drift, task.ephemeral_storage
    members: dict[str, Any] = {
        "Cluster": task.cluster_arn,
        "TaskARN": task.task_arn,
        "Family": task.family,
        "Revision": str(task.revision),
        "DesiredStatus": task.desired_status,
        "KnownStatus": task.known_status,
        # Units at the container, vCPU at the task: so does the agent (contract 5.2).
        "Limits": {"CPU": task.cpu_units / 1024, "Memory": task.memory_mib},
        "PullStartedAt": _time(task.pull_started_at_ns),
        "PullStoppedAt": _time(task.pull_stopped_at_ns),
        "ExecutionStoppedAt": _time(task.execution_stopped_at_ns),
        "AvailabilityZone": task.availability_zone,
        "AvailabilityZoneID": task.availability_zone_id,
        "LaunchType": task.launch_type,
        "ServiceName": task.service_name,
        "Group": task.group,
        "ClockDrift": None
        if drift is None
        else {
            "ClockErrorBound": drift.clock_error_bound_ms,
            "ReferenceTimestamp": format_time(drift.reference_timestamp_ns),
            "ClockSynchronizationStatus": "SYNCHRONIZED"
            if drift.is_synchronized
            else "NOT_SYNCHRONIZED",
        },
        "EphemeralStorageMetrics": None
        if storage is None
        else {"Utilized": storage.utilized_mib, "Reserved": storage.reserved_mib},
        "FaultInjectionEnabled": task.is_fault_injection_enabled,
    }
    if with_tags:
        members["TaskTags"] = task.tags
        members["ContainerInstanceTags"] = task.container_instance_tags
        members["Errors"] = [
            {
                "ErrorField": error.error_field,
                "ErrorCode": error.error_code,
                "ErrorMessage": error.error_message,
                "StatusCode": error.status_code,
                "RequestId": error.request_id,
                "ResourceARN": error.resource_arn,
            }
            for error in task.tag_errors
        ]
    shown = _present(members)
    # An agent's list without containers is still a list.
    shown["Containers"] = [container_response(item, version=version) for item in task.containers]
    return shown if version == 4 else _without(shown, _V4_TASK_ONLY)
