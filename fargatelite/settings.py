"""Where state lies and what this host pretends to be: one frozen record, read once.

Order of precedence, as podman and the AWS CLI have it: arguments, environment variables, the
configuration file, defaults. The file is TOML: `$FARGATELITE_CONFIG`, else
/etc/fargatelite/config.toml::

    data_root = "/var/lib/fargatelite"   # images, ledgers, records of stopped tasks
    run_root  = "/run/fargatelite"       # live tasks; gone after a reboot
    region    = "us-east-1"
    account   = "000000000000"
    cluster   = "default"
    insecure_registries = ["registry.test:5000"]   # plain HTTP; loopback needs no entry
    ecr_endpoint_url = "http://127.0.0.1:4566"     # where GetAuthorizationToken is asked
    image_backend = "auto"               # or file, loop, directory: how images are mounted
    log_drivers = "ship"                 # or local: logs are sent nowhere
    log_max_bytes = 10485760             # of one file of a container's log, at least 131072
    log_max_files = 3                    # kept of each container's log, at least 2
    storage_backend = "auto"             # or quota, loop; unlimited: ephemeralStorage is no limit
    prepared_sandboxes = 0               # sandboxes that a process keeps ready for its next tasks
    task_network_mbit = 0                # what a task may send, and receive; 0: no bound
    meter_slow_every_s = 20              # pace of memory.stat, block I/O, network; 0: never
    meter_sync_every_s = 30              # what of a ledger a power cut may take; 0: the kernel's
    meter_raw_days = 7                   # samples are kept, then their sums by minute and hour
    apparmor = "off"                     # or auto, required: a profile for tasks
    allow_privileged = false             # whether EC2's `privileged` containers may run
    strict_isolation = false             # true: run no task where a defence is weaker
    accepted_weaknesses = []             # ... but for these, as `check --security` names them
    assume_roles = false                 # true: secrets, files and logins with executionRoleArn

    [secrets]                            # either one: the host has the secrets, AWS is not asked
    local_directory = "/etc/fargatelite/secrets"
    local_environment_prefix = "FARGATELITE_SECRET_"

    [credentials]                        # what a container gets as its task role's
    source = "none"                      # or host, assume, static
    static_file = "/etc/fargatelite/credentials.json"

    [capacity]                           # of all tasks together; no bound by default
    cpu_units = 8192
    memory_mib = 16384
    wait_s = 60                          # a launch without room waits so long; 0, the default: not

    [block_io]                           # of each task, on the disk below the data root
    write_bytes_per_s = 104857600        # or read_; also read_, write_operations_per_s

    [retention]                          # what gc keeps, and how often it happens by itself
    record_days = 7
    every_minutes = 60

    [[security_groups.web.ingress]]      # as EC2's; tasks name the group
    IpProtocol = "tcp"
    FromPort = 80
    ToPort = 80
    IpRanges = [{ CidrIp = "0.0.0.0/0" }]

    [beyond_fargate]                     # what Fargate has not; each off by default
    cpu_burst = true

Every key is described in docs/configuration.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fargatelite.errors import ConfigurationInvalid
from fargatelite.security_groups import GroupDefinition, define_groups

__all__ = [
    "DEFAULT_CONFIG",
    "MAX_WAIT_S",
    "BeyondFargate",
    "BlockIo",
    "CredentialSettings",
    "EfsAccessPoint",
    "EfsFileSystem",
    "Retention",
    "SecretSettings",
    "Settings",
    "load_settings",
]

DEFAULT_CONFIG = Path("/etc/fargatelite/config.toml")


MAX_WAIT_S = 7 * 86400
"""The longest that a launch may wait for capacity."""

Weakness = Literal[
    "storage limit",
    "swap limit",
    "kernel memory",
    "cpu cap",
    "privileged containers",
    "built-in filter",
    "core dumps",
    "state directories",
    "connection tracking",
    "cpu side channels",
]


class BeyondFargate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this host grants its tasks that Fargate does not; nothing by default."""

    stop_timeout_over_120: bool = False
    overrides_over_8192: bool = False
    ephemeral_storage_over_200: bool = False
    max_run_time_s: Annotated[int, msgspec.Meta(ge=1)] | None = None
    cpu_burst: bool = False
    fixed_address: bool = False
    secret_files_refresh_s: Annotated[int, msgspec.Meta(ge=1)] | None = None


class EfsAccessPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An access point: where it begins, and who everybody is that comes by it (contract 2.6)."""

    access_point_id: Annotated[str, msgspec.Meta(pattern=r"^fsap-[0-9a-f]{8,40}$")]
    root_directory: str = "/"
    uid: Annotated[int, msgspec.Meta(ge=0, lt=65536)]
    gid: Annotated[int, msgspec.Meta(ge=0, lt=65536)]
    permissions: Annotated[str, msgspec.Meta(pattern=r"^0?[0-7]{3}$")] = "0755"


class EfsFileSystem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands for a file system of EFS here: a directory, or an NFSv4 export."""

    file_system_id: Annotated[str, msgspec.Meta(pattern=r"^fs-[0-9a-f]{8,40}$")]
    directory: str | None = None
    nfs: Annotated[str, msgspec.Meta(pattern=r"^[^:/]+:/.*$")] | None = None
    access_points: tuple[EfsAccessPoint, ...] = ()


class SecretSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the host itself has secrets. Read from the file only: a variable must not open one."""

    local_directory: str | None = None
    local_environment_prefix: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether AWS is not asked for secrets."""
        return self.local_directory is not None or self.local_environment_prefix is not None


class CredentialSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose credentials the containers of a task with `taskRoleArn` get."""

    source: Literal["none", "host", "assume", "static"] = "none"
    static_file: str | None = None


class Capacity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large all tasks of a run root may be together; None: no bound."""

    cpu_units: Annotated[int, msgspec.Meta(ge=1)] | None = None
    memory_mib: Annotated[int, msgspec.Meta(ge=1)] | None = None
    wait_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_WAIT_S)] = 0
    """How long a launch waits for room that does not say it; 0: it is refused at once."""
    max_waiting: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 100
    """How many wait at most; the next is refused at once."""


_BytesPerSecond = Annotated[int, msgspec.Meta(ge=65536, le=2**62)]
_OperationsPerSecond = Annotated[int, msgspec.Meta(ge=10, le=2**31)]


class BlockIo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each task may read from and write to the disk below the data root in a second; None: no
    bound. Below the least values a task could not even start in time."""

    read_bytes_per_s: _BytesPerSecond | None = None
    write_bytes_per_s: _BytesPerSecond | None = None
    read_operations_per_s: _OperationsPerSecond | None = None
    write_operations_per_s: _OperationsPerSecond | None = None


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long `gc` keeps what no task needs any more, and how often it happens by itself, after a
    task's end. 0: for ever, without bound, never."""

    record_days: Annotated[int, msgspec.Meta(ge=0)] = 7
    image_days: Annotated[int, msgspec.Meta(ge=0)] = 0
    images_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    every_minutes: Annotated[int, msgspec.Meta(ge=0)] = 60


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host's settings. Both roots are absolute paths, made with mode 0700."""

    data_root: str = "/var/lib/fargatelite"
    run_root: str = "/run/fargatelite"
    region: str = "us-east-1"
    account: str = "000000000000"
    cluster: str = "default"
    insecure_registries: tuple[str, ...] = ()
    ecr_endpoint_url: str | None = None
    image_backend: Literal["auto", "file", "loop", "directory"] = "auto"
    log_drivers: Literal["ship", "local"] = "ship"
    """`local`: what a definition's log drivers would send stays in the log files of this host."""
    log_max_bytes: Annotated[int, msgspec.Meta(ge=131072, le=2**40)] = 10 * 2**20
    """At least what the shim reads at once, and two files: so the bound holds exactly, and a reader
    that keeps up finds the rest of the file that it was reading."""
    log_max_files: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 3
    storage_backend: Literal["auto", "quota", "loop", "unlimited"] = "auto"
    prepared_sandboxes: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    """How many sandboxes a process that runs tasks keeps ready for the next ones."""
    task_network_mbit: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    """What each task may send, and as much receive, in 10^6 bits a second; 0: no bound."""
    meter_slow_every_s: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 20
    meter_sync_every_s: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 30
    meter_raw_days: Annotated[int, msgspec.Meta(ge=0)] = 7
    price_book: str | None = None
    """A price book of the user's own; see billing/prices.py."""
    apparmor: Literal["off", "auto", "required"] = "off"
    """Whether containers get an AppArmor profile: `auto` where this host can load it."""
    allow_privileged: bool = False
    beyond_fargate: BeyondFargate = BeyondFargate()
    capacity: Capacity = Capacity()
    block_io: BlockIo = BlockIo()
    retention: Retention = Retention()
    efs: tuple[EfsFileSystem, ...] = ()
    assume_roles: bool = False
    secrets: SecretSettings = SecretSettings()
    credentials: CredentialSettings = CredentialSettings()
    security_groups: tuple[GroupDefinition, ...] = ()
    """Tables by name in the file."""
    strict_isolation: bool = False
    """Whether tasks run only where every defence is in force."""
    accepted_weaknesses: tuple[Weakness, ...] = ()
    """Defences that may be weaker all the same: names of `check --security`."""

    @property
    def images(self) -> Path:
        """The image store."""
        return Path(self.data_root, "images")

    @property
    def ledgers(self) -> Path:
        """One ledger per task."""
        return Path(self.data_root, "ledger")

    @property
    def records(self) -> Path:
        """One directory per task: its record once it has stopped, and its logs."""
        return Path(self.data_root, "records")

    @property
    def layers(self) -> Path:
        """Writable layers of live tasks."""
        return Path(self.data_root, "tasks")

    @property
    def storage(self) -> Path:
        """Files that hold the file systems of live tasks."""
        return Path(self.data_root, "storage")

    @property
    def efs_directories(self) -> Path:
        """What stands for file systems of EFS that the configuration does not name."""
        return Path(self.data_root, "efs")

    @property
    def efs_mounts(self) -> Path:
        """Mount points of live tasks' file systems of EFS: nothing is ever deleted below."""
        return Path(self.run_root, "efs")

    @property
    def definitions(self) -> Path:
        """Registered task definitions: a directory per family."""
        return Path(self.data_root, "definitions")

    @property
    def cache(self) -> Path:
        """What can be made again at any time."""
        return Path(self.data_root, "cache")

    @property
    def runs(self) -> Path:
        """Run directories of live tasks."""
        return Path(self.run_root, "tasks")


_VARIABLES = {
    "data_root": "FARGATELITE_DATA_ROOT",
    "run_root": "FARGATELITE_RUN_ROOT",
    "region": "FARGATELITE_REGION",
    "account": "FARGATELITE_ACCOUNT",
    "cluster": "FARGATELITE_CLUSTER",
    "ecr_endpoint_url": "FARGATELITE_ECR_ENDPOINT_URL",
    "image_backend": "FARGATELITE_IMAGE_BACKEND",
    "log_drivers": "FARGATELITE_LOG_DRIVERS",
    "storage_backend": "FARGATELITE_STORAGE_BACKEND",
    "price_book": "FARGATELITE_PRICE_BOOK",
}
_PREFIX = re.compile(r"[A-Z][A-Z0-9_]{2,}_", re.ASCII)
_FORMS = {
    "region": re.compile(r"[a-z]{2}(-[a-z]+)+-\d", re.ASCII),
    "account": re.compile(r"\d{12}", re.ASCII),
    "cluster": re.compile(r"[A-Za-z0-9_-]{1,255}", re.ASCII),
}


def _read_file(environment: Mapping[str, str]) -> dict[str, Any]:
    chosen = environment.get("FARGATELITE_CONFIG")
    path = Path(chosen) if chosen else DEFAULT_CONFIG
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        if chosen:
            raise ConfigurationInvalid(
                f"configuration file {path} is not there; correct FARGATELITE_CONFIG", path=path
            ) from error
        return {}
    except UnicodeDecodeError as error:
        raise ConfigurationInvalid(
            f"configuration file {path} is not TOML: {error}", path=path
        ) from error
    import tomllib  # most hosts have no file

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationInvalid(
            f"configuration file {path} is not TOML: {error}", path=path
        ) from error


def _name_groups(tables: Any) -> Any:
    """The file's tables as a list, which msgspec checks."""
    if not isinstance(tables, dict) or not all(isinstance(item, dict) for item in tables.values()):
        raise ConfigurationInvalid(
            "configuration: security_groups: expected tables [security_groups.NAME]"
        )
    for name, item in tables.items():
        if "name" in item:
            raise ConfigurationInvalid(
                f"configuration: security_groups.{name}: name: the table's name is the group's"
            )
    return [item | {"name": name} for name, item in tables.items()]


def _check_local(settings: Settings) -> None:
    secrets, credentials = settings.secrets, settings.credentials
    prefix = secrets.local_environment_prefix
    if prefix is not None and not _PREFIX.fullmatch(prefix):
        # An empty one would show a definition's author every variable of the host.
        raise ConfigurationInvalid(
            f"configuration: secrets.local_environment_prefix {prefix!r} is not of the form "
            f"{_PREFIX.pattern}"
        )
    for name, path in (
        ("secrets.local_directory", secrets.local_directory),
        ("credentials.static_file", credentials.static_file),
        ("price_book", settings.price_book),
    ):
        if path is not None and not path.startswith("/"):
            raise ConfigurationInvalid(f"configuration: {name} {path!r} is not an absolute path")
    if (credentials.source == "static") != (credentials.static_file is not None):
        raise ConfigurationInvalid(
            'configuration: credentials.static_file belongs to credentials.source = "static", and '
            "the source needs the file"
        )


def load_settings(
    *,
    data_root: str | os.PathLike[str] | None = None,
    run_root: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """The settings of this host; arguments beat variables, which beat the file.

    Raises: ConfigurationInvalid naming the setting and what is allowed.
    """
    environment = os.environ if environment is None else environment
    values = _read_file(environment)
    if "security_groups" in values:
        values["security_groups"] = _name_groups(values["security_groups"])
    for name, variable in _VARIABLES.items():
        if environment.get(variable):
            values[name] = environment[variable]
    for name, chosen in (("data_root", data_root), ("run_root", run_root)):
        if chosen is not None:
            values[name] = os.fspath(chosen)
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise ConfigurationInvalid(f"configuration: {error}") from error
    _check_local(settings)
    define_groups(settings.security_groups)
    for name, form in _FORMS.items():
        if not form.fullmatch(getattr(settings, name)):
            raise ConfigurationInvalid(
                f"configuration: {name} {getattr(settings, name)!r} is not of the form "
                f"{form.pattern}"
            )
    return msgspec.structs.replace(
        settings,
        data_root=os.path.abspath(settings.data_root),
        run_root=os.path.abspath(settings.run_root),
    )
