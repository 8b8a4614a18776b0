"""The shapes of members that Fargate refuses as a whole, or that need another of AWS's services.

Their own members carry the marker of the whole: what is refused is named once, at its top.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import field

from fargatelite.taskdef.markers import Effect, OneOf, Recorded, Refused, unsupported

__all__ = [
    "Device",
    "DockerVolume",
    "FsxAuthorization",
    "FsxVolume",
    "HostEntry",
    "InferenceAccelerator",
    "InferenceAcceleratorOverride",
    "NvidiaMps",
    "PlacementConstraint",
    "ProxyConfiguration",
    "ProxyProperty",
    "ResourceRequirement",
    "S3FilesVolume",
    "SharingStrategy",
    "TrustedExecution",
]

EXTRA_HOSTS = Refused(
    "Extra hosts are not supported on container when networkMode=awsvpc.",
    Effect("runtime.container_files.hosts_of", "2.2"),
)
DEVICES = unsupported("devices", Effect("runtime.devices.find_devices", "2.7"))
DOCKER_VOLUME = unsupported("dockerVolumeConfiguration")
FSX = unsupported(
    "fsxWindowsFileServerVolumeConfiguration",
    Refused("fsxWindowsFileServerVolumeConfiguration is for Windows containers."),
)
_NO_S3_FILES = (
    "s3filesVolumeConfiguration needs Amazon S3 Files, which this host has not; use a volume "
    "of the task's own."
)
S3_FILES = Refused(_NO_S3_FILES, Refused(_NO_S3_FILES))
CONSTRAINTS = unsupported("constraints", Recorded("a single host: there is nothing to place"))
RESOURCES = Refused(
    "Tasks using the Fargate launch type do not support GPU resource requirements.",
    Refused("No Container Instances were found in your cluster: RESOURCE:GPU."),
)
_NO_ACCELERATORS = "Unsupported field 'inferenceAccelerators'"
ACCELERATORS = Refused(_NO_ACCELERATORS, Refused(_NO_ACCELERATORS))
TRUSTED = unsupported(
    "trustedExecutionConfiguration",
    Refused("trustedExecutionConfiguration is for ECS Managed Instances."),
)
APP_MESH = Recorded("App Mesh's proxy is not set up: traffic is not redirected (contract 2.1)")


class _Shape(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Members are camelCase on the wire."""


class HostEntry(_Shape, frozen=True, kw_only=True):
    """HostEntry."""

    hostname: Annotated[str, EXTRA_HOSTS]
    ip_address: Annotated[str, EXTRA_HOSTS]


class Device(_Shape, frozen=True, kw_only=True):
    """Device; `permissions` are read, write and mknod, all three by default."""

    host_path: Annotated[str, DEVICES]
    container_path: Annotated[str | None, DEVICES] = None
    permissions: Annotated[tuple[str, ...], DEVICES, OneOf(("read", "write", "mknod"))] = ()


class DockerVolume(_Shape, frozen=True, kw_only=True):
    """DockerVolumeConfiguration."""

    scope: Annotated[str | None, DOCKER_VOLUME, OneOf(("task", "shared"))] = None
    autoprovision: Annotated[bool, DOCKER_VOLUME] = False
    driver: Annotated[str | None, DOCKER_VOLUME] = None
    driver_opts: Annotated[dict[str, str], DOCKER_VOLUME] = {}
    labels: Annotated[dict[str, str], DOCKER_VOLUME] = {}


class FsxAuthorization(_Shape, frozen=True, kw_only=True):
    """FSxWindowsFileServerAuthorizationConfig."""

    credentials_parameter: Annotated[str, FSX]
    domain: Annotated[str, FSX]


class FsxVolume(_Shape, frozen=True, kw_only=True):
    """FSxWindowsFileServerVolumeConfiguration."""

    file_system_id: Annotated[str, FSX]
    root_directory: Annotated[str, FSX]
    authorization_config: Annotated[FsxAuthorization, FSX]


class S3FilesVolume(_Shape, frozen=True, kw_only=True):
    """S3FilesVolumeConfiguration."""

    file_system_arn: Annotated[str, S3_FILES]
    root_directory: Annotated[str | None, S3_FILES] = None
    transit_encryption_port: Annotated[int | None, S3_FILES] = None
    access_point_arn: Annotated[str | None, S3_FILES] = None


class PlacementConstraint(_Shape, frozen=True, kw_only=True):
    """TaskDefinitionPlacementConstraint."""

    type: Annotated[str | None, CONSTRAINTS, OneOf(("memberOf",))] = None
    expression: Annotated[str | None, CONSTRAINTS] = None


class NvidiaMps(_Shape, frozen=True, kw_only=True):
    """NvidiaMpsAllocation."""

    memory_mib: Annotated[int, RESOURCES] = field(name="memory")
    max_compute_percent: Annotated[int | None, RESOURCES] = None


class SharingStrategy(_Shape, frozen=True, kw_only=True):
    """SharingStrategy, a union of one member."""

    nvidia_mps: Annotated[NvidiaMps | None, RESOURCES] = None


class ResourceRequirement(_Shape, frozen=True, kw_only=True):
    """ResourceRequirement."""

    type: Annotated[str, RESOURCES, OneOf(("GPU", "InferenceAccelerator", "NeuronDevice"))]
    value: Annotated[str | None, RESOURCES] = None
    sharing_strategy: Annotated[SharingStrategy | None, RESOURCES] = None


class InferenceAccelerator(_Shape, frozen=True, kw_only=True):
    """InferenceAccelerator."""

    device_name: Annotated[str, ACCELERATORS]
    device_type: Annotated[str, ACCELERATORS]


class InferenceAcceleratorOverride(_Shape, frozen=True, kw_only=True):
    """InferenceAcceleratorOverride."""

    device_name: Annotated[str | None, ACCELERATORS] = None
    device_type: Annotated[str | None, ACCELERATORS] = None


class TrustedExecution(_Shape, frozen=True, kw_only=True):
    """TrustedExecutionConfiguration."""

    isolation_mode: Annotated[
        str, TRUSTED, OneOf(("SHARED", "ISOLATED_SANDBOX", "CONFIDENTIAL_SANDBOX"))
    ]
    attestation_policy: Annotated[str | None, TRUSTED] = None


class ProxyProperty(_Shape, frozen=True, kw_only=True):
    """KeyValuePair of a proxy configuration."""

    name: Annotated[str, APP_MESH] = ""
    value: Annotated[str, APP_MESH] = ""


class ProxyConfiguration(_Shape, frozen=True, kw_only=True):
    """ProxyConfiguration (contract 2.1)."""

    container_name: Annotated[str, APP_MESH]
    type: Annotated[str | None, APP_MESH, OneOf(("APPMESH",))] = None
    properties: Annotated[tuple[ProxyProperty, ...], APP_MESH] = ()
