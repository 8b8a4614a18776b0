"""Every member of RegisterTaskDefinition, and where each takes effect.

"Where does `readonlyRootFilesystem` take effect?" is answered by its line here. Each field carries
exactly one of

* `Effect(function)`: the function that makes it true;
* `Refused(message, on_ec2)`: Fargate refuses it, with this message (contract 2.9); `on_ec2` says
  what the launch type EC2 does with it;
* `Recorded(reason)`: kept and shown, with nothing to do on this host;
* `NotYet()`: Fargate has it, this version does not; using it is an error that names its path.

A value equal to the field's default asks for nothing and is always accepted.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import field

from fargatelite.taskdef.fields_refused import (
    ACCELERATORS,
    APP_MESH,
    CONSTRAINTS,
    DEVICES,
    DOCKER_VOLUME,
    EXTRA_HOSTS,
    FSX,
    RESOURCES,
    S3_FILES,
    TRUSTED,
    Device,
    DockerVolume,
    FsxVolume,
    HostEntry,
    InferenceAccelerator,
    PlacementConstraint,
    ProxyConfiguration,
    ResourceRequirement,
    S3FilesVolume,
    TrustedExecution,
)
from fargatelite.taskdef.markers import (
    Effect,
    NotYet,
    OneOf,
    Recorded,
    Refused,
    Required,
    unsupported,
)

__all__ = [
    "Capabilities",
    "ContainerDefinition",
    "ContainerDependency",
    "Effect",
    "EfsAuthorization",
    "EfsVolume",
    "EnvironmentFile",
    "EphemeralStorage",
    "FirelensConfiguration",
    "HealthCheck",
    "HostVolume",
    "KeyValue",
    "LinuxParameters",
    "LogConfiguration",
    "MountPoint",
    "NotYet",
    "PortMapping",
    "Recorded",
    "Refused",
    "RepositoryCredentials",
    "RestartPolicy",
    "RuntimePlatform",
    "Secret",
    "SystemControl",
    "Tag",
    "TaskDefinition",
    "Tmpfs",
    "Ulimit",
    "Volume",
    "VolumeFrom",
]


class _Shape(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Members are camelCase on the wire."""


_ENVIRONMENT = Effect("sandbox.environment.compose_environment", "4.7")
_PROCESS = Effect("sandbox.compile.resolve_process")
_HEALTH = Effect("runtime.task.new_state", "3.7")
_LIMITS = Effect("runtime.launch.container_limits")
_TASK_LIMITS = Effect("runtime.launch.task_limits", "4.3")
_RESTART = Effect("runtime.transitions.will_restart", "3.8")
_ORDER = Effect("runtime.dependencies.judge", "3.5")


class KeyValue(_Shape, frozen=True, kw_only=True):
    """KeyValuePair."""

    name: Annotated[str, _ENVIRONMENT] = ""
    value: Annotated[str, _ENVIRONMENT] = ""


class Tag(_Shape, frozen=True, kw_only=True):
    """Tag: key of 1 to 128 characters, value of at most 256."""

    key: Annotated[str, Recorded("shown by describe")] = ""
    value: Annotated[str, Recorded("shown by describe")] = ""


_PORT = Recorded("the port lives on the task's own address; --publish maps it to the host")


class PortMapping(_Shape, frozen=True, kw_only=True):
    """PortMapping (contract 2.3)."""

    container_port: Annotated[int | None, _PORT] = None
    host_port: Annotated[int | None, _PORT] = None
    # Any other text is TCP (contract 2.3), so this is no enumeration.
    protocol: Annotated[str, _PORT] = "tcp"
    name: Annotated[str | None, _PORT] = None
    app_protocol: Annotated[str | None, _PORT, OneOf(("http", "http2", "grpc"))] = None
    container_port_range: Annotated[str | None, _PORT] = None


class ContainerDependency(_Shape, frozen=True, kw_only=True):
    """ContainerDependency."""

    container_name: Annotated[str, _ORDER]
    condition: Annotated[str, _ORDER, OneOf(("START", "COMPLETE", "SUCCESS", "HEALTHY"))]


class HealthCheck(_Shape, frozen=True, kw_only=True):
    """HealthCheck with Fargate's defaults (contract 3.7)."""

    command: Annotated[tuple[str, ...], Effect("sandbox.compile.compile_health_check", "3.7")]
    interval_s: Annotated[int, _HEALTH] = field(default=30, name="interval")
    timeout_s: Annotated[int, Effect("runtime.execute.SupervisedTask._run_health_check", "3.7")] = (
        field(default=5, name="timeout")
    )
    retries: Annotated[int, _HEALTH] = 3
    start_period_s: Annotated[int, _HEALTH] = field(default=0, name="startPeriod")


class Ulimit(_Shape, frozen=True, kw_only=True):
    """Ulimit; -1 is unlimited."""

    name: Annotated[
        str,
        Effect("sandbox.compile.compile_rlimits", "4.3"),
        OneOf(
            (
                "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile",
                "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
            )
        ),
    ]  # fmt: skip
    soft_limit: Annotated[int, Effect("sandbox.compile.compile_rlimits", "4.3")]
    hard_limit: Annotated[int, Effect("sandbox.compile.compile_rlimits", "4.3")]


class Capabilities(_Shape, frozen=True, kw_only=True):
    """KernelCapabilities; names without CAP_."""

    add: Annotated[tuple[str, ...], Effect("sandbox.capabilities.container_mask", "2.7")] = ()
    drop: Annotated[tuple[str, ...], Effect("sandbox.capabilities.container_mask", "2.7")] = ()


_VOLUME = Effect("runtime.volumes.list_mounts", "2.6")
_TMPFS = Effect("sandbox.mounts.parse_tmpfs", "2.7")
_EFS = Effect("storage.efs.mount_efs", "2.6")
_EFS_TRANSPORT = Recorded(
    "here a directory of the host or an NFS server of its own network: no TLS and no IAM between"
)
_SYSCTL = Effect("sandbox.compile.compile_sysctls", "4.6")
_SECRET = Effect("aws.secrets.resolve_secrets", "2.5")
_REGISTRY_LOGIN = Effect("runtime.inputs.TaskInputs.registry_credentials", "2.5")
_LOGGING = Effect("logdrivers.build.build_driver", "2.8")
_FIRELENS = Effect("runtime.shipping.TaskLogs.wire", "2.8")
_ENVIRONMENT_FILE = Effect("aws.environment_files.fetch_environment_files", "2.4")


class RepositoryCredentials(_Shape, frozen=True, kw_only=True):
    """RepositoryCredentials (contract 2.5)."""

    credentials_parameter: Annotated[str, _REGISTRY_LOGIN]


class RestartPolicy(_Shape, frozen=True, kw_only=True):
    """ContainerRestartPolicy (contract 3.8)."""

    enabled: Annotated[bool, _RESTART]
    ignored_exit_codes: Annotated[tuple[int, ...], _RESTART] = ()
    restart_attempt_period_s: Annotated[int, _RESTART] = field(
        default=300, name="restartAttemptPeriod"
    )


class EnvironmentFile(_Shape, frozen=True, kw_only=True):
    """EnvironmentFile (contract 2.4): `value` is the ARN of an S3 object."""

    value: Annotated[str, _ENVIRONMENT_FILE]
    type: Annotated[str, _ENVIRONMENT_FILE, OneOf(("s3",))]


class Secret(_Shape, frozen=True, kw_only=True):
    """Secret (contract 2.5)."""

    name: Annotated[str, _SECRET]
    value_from: Annotated[str, _SECRET]


class MountPoint(_Shape, frozen=True, kw_only=True):
    """MountPoint."""

    source_volume: Annotated[str | None, _VOLUME] = None
    container_path: Annotated[str | None, _VOLUME] = None
    read_only: Annotated[bool, _VOLUME] = False


class VolumeFrom(_Shape, frozen=True, kw_only=True):
    """VolumeFrom."""

    source_container: Annotated[str | None, _VOLUME] = None
    read_only: Annotated[bool, _VOLUME] = False


class LogConfiguration(_Shape, frozen=True, kw_only=True):
    """LogConfiguration (contract 2.8). Without one, output is in the local log alone, for
    `fargatelite logs`; Fargate discards it."""

    log_driver: Annotated[str, _LOGGING]
    options: Annotated[dict[str, str], _LOGGING] = {}
    secret_options: Annotated[tuple[Secret, ...], _SECRET] = ()


class SystemControl(_Shape, frozen=True, kw_only=True):
    """SystemControl (contract 4.6)."""

    namespace: Annotated[str | None, _SYSCTL] = None
    value: Annotated[str | None, _SYSCTL] = None


class FirelensConfiguration(_Shape, frozen=True, kw_only=True):
    """FirelensConfiguration (contract 2.8)."""

    type: Annotated[str, _FIRELENS, OneOf(("fluentd", "fluentbit"))]
    options: Annotated[dict[str, str], _FIRELENS] = {}


class Tmpfs(_Shape, frozen=True, kw_only=True):
    """Tmpfs (contract 2.7)."""

    container_path: Annotated[str, _TMPFS]
    size_mib: Annotated[int, _TMPFS] = field(name="size")
    mount_options: Annotated[tuple[str, ...], _TMPFS] = ()


class EfsAuthorization(_Shape, frozen=True, kw_only=True):
    """EFSAuthorizationConfig."""

    access_point_id: Annotated[str | None, _EFS] = None
    iam: Annotated[str, _EFS_TRANSPORT, OneOf(("ENABLED", "DISABLED"))] = "DISABLED"


class EfsVolume(_Shape, frozen=True, kw_only=True):
    """EFSVolumeConfiguration (contract 2.6)."""

    file_system_id: Annotated[str, _EFS]
    root_directory: Annotated[str, _EFS] = "/"
    transit_encryption: Annotated[str, _EFS_TRANSPORT, OneOf(("ENABLED", "DISABLED"))] = "DISABLED"
    transit_encryption_port: Annotated[int | None, _EFS_TRANSPORT] = None
    authorization_config: Annotated[EfsAuthorization | None, _EFS] = None


_NO_EBS = (
    "A volume that is configured at launch is an Amazon EBS volume, which this host has not; leave "
    "configuredAtLaunch out."
)
_EBS = Refused(_NO_EBS, Refused(_NO_EBS))


class HostVolume(_Shape, frozen=True, kw_only=True):
    """HostVolumeProperties."""

    source_path: Annotated[
        str | None, unsupported("sourcePath", Effect("runtime.volumes.prepare_volumes", "2.6"))
    ] = None


class Volume(_Shape, frozen=True, kw_only=True):
    """Volume (contract 2.6)."""

    name: Annotated[str | None, _VOLUME] = None
    host: Annotated[HostVolume | None, _VOLUME] = None
    efs: Annotated[EfsVolume | None, _EFS] = field(default=None, name="efsVolumeConfiguration")
    configured_at_launch: Annotated[bool, _EBS] = False
    docker_volume_configuration: Annotated[DockerVolume | None, DOCKER_VOLUME] = None
    fsx_windows_file_server_volume_configuration: Annotated[FsxVolume | None, FSX] = None
    s3files_volume_configuration: Annotated[S3FilesVolume | None, S3_FILES] = None


class LinuxParameters(_Shape, frozen=True, kw_only=True):
    """LinuxParameters (contract 2.7)."""

    capabilities: Annotated[
        Capabilities | None, Effect("sandbox.capabilities.container_mask", "2.7")
    ] = None
    init_process_enabled: Annotated[bool, Effect("sandbox.compile.compile_container", "2.7")] = (
        False
    )
    tmpfs: Annotated[tuple[Tmpfs, ...], _TMPFS] = ()
    devices: Annotated[tuple[Device, ...], DEVICES] = ()
    shared_memory_size_mib: Annotated[
        int | None, unsupported("sharedMemorySize", Effect("sandbox.rootfs.compile_mounts", "2.7"))
    ] = field(default=None, name="sharedMemorySize")
    max_swap_mib: Annotated[
        int | None,
        unsupported("maxSwap", Refused("maxSwap is not supported: a task has no swap here.")),
    ] = field(default=None, name="maxSwap")
    swappiness: Annotated[
        int | None,
        unsupported("swappiness", Refused("swappiness is not supported: a task has no swap here.")),
    ] = None


class ContainerDefinition(_Shape, frozen=True, kw_only=True):
    """ContainerDefinition (contract 2.2)."""

    name: Annotated[str, Effect("names.cgroup_path")] = ""
    image: Annotated[str, Effect("images.store.ImageStore.pull", "3.9")] = ""
    cpu_units: Annotated[int, _LIMITS] = field(default=0, name="cpu")
    memory_mib: Annotated[int | None, _LIMITS] = field(default=None, name="memory")
    memory_reservation_mib: Annotated[int | None, _LIMITS] = field(
        default=None, name="memoryReservation"
    )
    port_mappings: Annotated[tuple[PortMapping, ...], _PORT] = ()
    essential: Annotated[bool, Effect("runtime.task.new_state", "3.4")] = True
    entry_point: Annotated[tuple[str, ...] | None, _PROCESS] = None
    command: Annotated[tuple[str, ...] | None, _PROCESS] = None
    environment: Annotated[tuple[KeyValue, ...], _ENVIRONMENT] = ()
    depends_on: Annotated[tuple[ContainerDependency, ...], _ORDER] = ()
    start_timeout_s: Annotated[int | None, Effect("runtime.task.new_state", "3.5")] = field(
        default=None, name="startTimeout"
    )
    stop_timeout_s: Annotated[int, Effect("runtime.task.new_state", "3.6")] = field(
        default=30, name="stopTimeout"
    )
    user: Annotated[str | None, Effect("sandbox.users.resolve_user", "4.4")] = None
    working_directory: Annotated[str | None, _PROCESS] = None
    readonly_root_filesystem: Annotated[bool, Effect("sandbox.compile.compile_container")] = False
    ulimits: Annotated[tuple[Ulimit, ...], Effect("sandbox.compile.compile_rlimits", "4.3")] = ()
    health_check: Annotated[HealthCheck | None, _HEALTH] = None
    linux_parameters: Annotated[
        LinuxParameters | None, Effect("sandbox.capabilities.container_mask", "2.7")
    ] = None
    docker_labels: Annotated[dict[str, str], Recorded("shown by describe")] = {}
    version_consistency: Annotated[
        str | None,
        Recorded("a standalone task resolves its digest once, at the pull"),
        OneOf(("enabled", "disabled")),
    ] = None

    repository_credentials: Annotated[RepositoryCredentials | None, _REGISTRY_LOGIN] = None
    restart_policy: Annotated[RestartPolicy | None, _RESTART] = None
    environment_files: Annotated[tuple[EnvironmentFile, ...], _ENVIRONMENT_FILE] = ()
    mount_points: Annotated[tuple[MountPoint, ...], _VOLUME] = ()
    volumes_from: Annotated[tuple[VolumeFrom, ...], _VOLUME] = ()
    secrets: Annotated[tuple[Secret, ...], _SECRET] = ()
    interactive: Annotated[bool, Effect("sandbox.compile.compile_container")] = False
    pseudo_terminal: Annotated[bool, Effect("sandbox.compile.compile_container")] = False
    log_configuration: Annotated[LogConfiguration | None, _LOGGING] = None
    system_controls: Annotated[tuple[SystemControl, ...], _SYSCTL] = ()
    firelens_configuration: Annotated[FirelensConfiguration | None, _FIRELENS] = None

    links: Annotated[
        tuple[str, ...],
        Refused(
            "Links are not supported when networkMode=awsvpc.",
            Effect("runtime.container_files.hosts_of", "2.2"),
        ),
    ] = ()
    hostname: Annotated[
        str | None,
        Refused(
            "hostname is not supported on container when networkMode=awsvpc.",
            Effect("runtime.container_files.hostname_of", "2.2"),
        ),
    ] = None
    disable_networking: Annotated[
        bool,
        Refused(
            "Disable Networking is not supported on container when networkMode=awsvpc.",
            Effect("sandbox.compile.compile_container", "2.2"),
        ),
    ] = False
    privileged: Annotated[
        bool,
        Refused(
            "Fargate requires that the ‘privileged’ setting be ‘false’ at the container level.",
            Effect("runtime.launch.privileges_of", "2.2"),
        ),
    ] = False
    dns_servers: Annotated[
        tuple[str, ...],
        Refused(
            "DNS servers are not supported on container when networkMode=awsvpc.",
            Effect("runtime.container_files.resolv_conf_of", "2.2"),
        ),
    ] = ()
    dns_search_domains: Annotated[
        tuple[str, ...],
        Refused(
            "DNS search domains are not supported on container when networkMode=awsvpc.",
            Effect("runtime.container_files.resolv_conf_of", "2.2"),
        ),
    ] = ()
    extra_hosts: Annotated[tuple[HostEntry, ...], EXTRA_HOSTS] = ()
    docker_security_options: Annotated[
        tuple[str, ...],
        unsupported("dockerSecurityOptions", Effect("runtime.launch.privileges_of", "2.2")),
    ] = ()
    resource_requirements: Annotated[tuple[ResourceRequirement, ...], RESOURCES] = ()
    credential_specs: Annotated[
        tuple[str, ...],
        unsupported("credentialSpecs", Refused("credentialSpecs is not supported on this host.")),
    ] = ()


class EphemeralStorage(_Shape, frozen=True, kw_only=True):
    """EphemeralStorage."""

    size_gib: Annotated[int, Effect("storage.ephemeral.create_storage", "4.3")] = field(
        name="sizeInGiB"
    )


class RuntimePlatform(_Shape, frozen=True, kw_only=True):
    """RuntimePlatform."""

    cpu_architecture: Annotated[
        str, Effect("runtime.launch.platform_of", "3.9"), OneOf(("X86_64", "ARM64"))
    ] = "X86_64"
    operating_system_family: Annotated[str, Effect("taskdef.rules.check_platform", "2.1")] = "LINUX"


_AWSVPC = Effect("taskdef.rules.check_network_mode", "2.9")


class TaskDefinition(_Shape, frozen=True, kw_only=True):
    """RegisterTaskDefinition's request, checked; `revision` is 1 when it was never registered."""

    family: Annotated[str, Effect("names.task_definition_arn", "8.2"), Required()] = ""
    containers: Annotated[
        tuple[ContainerDefinition, ...], Effect("runtime.task.new_state", "2.1"), Required()
    ] = field(default=(), name="containerDefinitions")
    cpu_units: Annotated[int, _TASK_LIMITS] = field(default=0, name="cpu")
    memory_mib: Annotated[int, _TASK_LIMITS] = field(default=0, name="memory")
    network_mode: Annotated[str | None, _AWSVPC, OneOf(("bridge", "host", "awsvpc", "none"))] = None
    requires_compatibilities: Annotated[
        tuple[str, ...],
        Effect("taskdef.rules.check_compatibilities", "2.1"),
        OneOf(("EC2", "FARGATE", "EXTERNAL", "MANAGED_INSTANCES")),
    ] = ()
    task_role_arn: Annotated[str | None, Effect("aws.task_role.open_task_role", "5.5")] = None
    execution_role_arn: Annotated[str | None, Effect("aws.session.execution_session", "2.5")] = None
    ephemeral_storage: Annotated[
        EphemeralStorage | None, Effect("storage.ephemeral.create_storage", "4.3")
    ] = None
    runtime_platform: Annotated[
        RuntimePlatform | None, Effect("runtime.launch.platform_of", "3.9")
    ] = None
    tags: Annotated[tuple[Tag, ...], Recorded("shown by describe")] = ()

    pid_mode: Annotated[
        str | None, Effect("sandbox.compile.compile_pause", "4.5"), OneOf(("host", "task"))
    ] = None
    volumes: Annotated[tuple[Volume, ...], _VOLUME] = ()
    proxy_configuration: Annotated[ProxyConfiguration | None, APP_MESH] = None
    enable_fault_injection: Annotated[
        bool, Effect("runtime.endpoint.TaskEndpoint.__init__", "5.6")
    ] = False

    placement_constraints: Annotated[tuple[PlacementConstraint, ...], CONSTRAINTS] = ()
    ipc_mode: Annotated[
        str | None,
        unsupported("ipcMode", Effect("sandbox.compile.compile_container", "4.5")),
        OneOf(("host", "task", "none")),
    ] = None
    inference_accelerators: Annotated[tuple[InferenceAccelerator, ...], ACCELERATORS] = ()
    trusted_execution_configuration: Annotated[TrustedExecution | None, TRUSTED] = None

    revision: Annotated[int, Effect("names.task_definition_arn", "8.2")] = 1

    @property
    def ephemeral_storage_gib(self) -> int:
        """20 when the definition names none (contract 4.3)."""
        return self.ephemeral_storage.size_gib if self.ephemeral_storage is not None else 20

    @property
    def has_own_network(self) -> bool:
        """Whether the task has an address; with the modes host and none (EC2) it has not."""
        return self.network_mode not in ("host", "none")

    @property
    def cpu_architecture(self) -> str:
        """X86_64 or ARM64."""
        platform = self.runtime_platform
        return platform.cpu_architecture if platform is not None else "X86_64"
