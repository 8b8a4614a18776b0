"""Fargate's rules about volumes, mounts, sysctls and restarts (contract 2.6-2.9, 3.8,
4.6), a function each."""

from __future__ import annotations

import re

from fargatelite.taskdef.fields import EfsVolume, TaskDefinition, Volume
from fargatelite.taskdef.problems import Problems, each_container, problem

__all__ = ["RESOURCE_RULES", "TMPFS_OPTIONS"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}", re.ASCII)
_FILE_SYSTEM = re.compile(r"fs-[0-9a-f]{8,40}", re.ASCII)
_SYSCTL = re.compile(r"[a-z0-9_]+([./][A-Za-z0-9_:@*-]+)+", re.ASCII)

IPC_SYSCTLS = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax "
    "kernel.shmmni kernel.shm_rmid_forced".split()
)
TMPFS_OPTIONS = frozenset(
    """defaults ro rw suid nosuid dev nodev exec noexec sync async dirsync remount mand nomand atime
    noatime diratime nodiratime bind rbind unbindable runbindable private rprivate shared rshared
    slave rslave relatime norelatime strictatime nostrictatime mode uid gid nr_inodes nr_blocks
    mpol""".split()
)
# Where the runtime's own mounts are; what a user mounts there would hide them (CVE-2019-16884).
_RESERVED = ("/proc", "/sys")


# ---- volumes ----


def _check_efs(path: str, efs: EfsVolume) -> Problems:
    if not _FILE_SYSTEM.fullmatch(efs.file_system_id):
        yield problem(
            f"{path}.fileSystemId", "Invalid fileSystemId.", efs.file_system_id, "like fs-12345678"
        )
    is_encrypted = efs.transit_encryption == "ENABLED"
    if efs.transit_encryption_port is not None and not is_encrypted:
        yield problem(
            f"{path}.transitEncryptionPort",
            "EFS transit encryption port requires TransitEncryption to be enabled.",
            efs.transit_encryption_port,
        )
    authorization = efs.authorization_config
    if authorization is None:
        return
    if authorization.iam == "ENABLED" and not is_encrypted:
        yield problem(
            f"{path}.authorizationConfig.iam",
            "EFS IAM authorization requires TransitEncryption to be enabled.",
        )
    if authorization.access_point_id is not None:
        if efs.root_directory not in ("/", ""):
            yield problem(
                f"{path}.rootDirectory",
                "When using an EFS access point, the root directory must either be set to "
                '"/" or be omitted.',
                efs.root_directory,
                "/",
            )
        if not is_encrypted:
            yield problem(
                f"{path}.authorizationConfig.accessPointId",
                "EFS access points require TransitEncryption to be enabled.",
                authorization.access_point_id,
            )


def _kinds(volume: Volume) -> list[str]:
    return [
        name
        for name, value in (
            ("host", volume.host is not None and volume.host.source_path),
            ("efsVolumeConfiguration", volume.efs),
            ("dockerVolumeConfiguration", volume.docker_volume_configuration),
            ("s3filesVolumeConfiguration", volume.s3files_volume_configuration),
            (
                "fsxWindowsFileServerVolumeConfiguration",
                volume.fsx_windows_file_server_volume_configuration,
            ),
            ("configuredAtLaunch", volume.configured_at_launch),
        )
        if value
    ]


def check_volumes(task: TaskDefinition) -> Problems:
    """Contract 2.6: named, unique, of at most one kind."""
    seen: set[str] = set()
    for index, volume in enumerate(task.volumes):
        path = f"volumes[{index}]"
        name = volume.name or ""
        if not _NAME.fullmatch(name):
            yield problem(
                f"{path}.name", "Invalid volume name.", repr(name),
                "1 to 255 letters, digits, - and _",
            )  # fmt: skip
        elif name in seen:
            yield problem(
                f"{path}.name", "Volume names must be unique within a task definition.", name
            )
        seen.add(name)
        kinds = _kinds(volume)
        if len(kinds) > 1:
            yield problem(
                path, "When the volume parameter is specified, only one volume configuration type "
                "should be used.", ", ".join(kinds),
            )  # fmt: skip
        if volume.efs is not None:
            yield from _check_efs(f"{path}.efsVolumeConfiguration", volume.efs)


def _check_container_path(where: str, path: str | None, seen: set[str]) -> Problems:
    if not path:
        yield problem(where, "containerPath should not be null or empty.")
        return
    parts = [part for part in path.split("/") if part not in ("", ".")]
    clean = "/" + "/".join(parts)
    if not path.startswith("/") or ".." in parts or clean == "/":
        yield problem(where, "Invalid containerPath.", path, "an absolute path below /, without ..")
    elif clean in seen:
        yield problem(where, f"Duplicate mount point '{clean}'.", path)
    elif clean.startswith(tuple(f"{name}/" for name in _RESERVED)) or clean in _RESERVED:
        yield problem(where, "Invalid containerPath.", path, "not in /proc or /sys")
    seen.add(clean)


def check_mounts(task: TaskDefinition) -> Problems:
    """Mount points, volumes of others, tmpfs: known sources, possible targets."""
    volumes = {volume.name for volume in task.volumes}
    names = {container.name for container in task.containers}
    for path, container in each_container(task):
        seen: set[str] = set()
        for index, mount in enumerate(container.mount_points):
            where = f"{path}.mountPoints[{index}]"
            if mount.source_volume not in volumes:
                yield problem(
                    f"{where}.sourceVolume", f"Unknown volume '{mount.source_volume}'.",
                    mount.source_volume, ", ".join(sorted(filter(None, volumes))) or "none",
                )  # fmt: skip
            yield from _check_container_path(f"{where}.containerPath", mount.container_path, seen)
        linux = container.linux_parameters
        for index, tmpfs in enumerate(linux.tmpfs if linux is not None else ()):
            where = f"{path}.linuxParameters.tmpfs[{index}]"
            yield from _check_container_path(f"{where}.containerPath", tmpfs.container_path, seen)
            if tmpfs.size_mib < 1:
                yield problem(f"{where}.size", "Invalid tmpfs size.", tmpfs.size_mib, "1 MiB up")
            for number, option in enumerate(tmpfs.mount_options):
                if option.partition("=")[0] not in TMPFS_OPTIONS:
                    yield problem(
                        f"{where}.mountOptions[{number}]", "Invalid tmpfs mount option.", option,
                        " ".join(sorted(TMPFS_OPTIONS)),
                    )  # fmt: skip
        for index, other in enumerate(container.volumes_from):
            where = f"{path}.volumesFrom[{index}].sourceContainer"
            if other.source_container not in names:
                yield problem(
                    where, f"Unknown source container '{other.source_container}'.",
                    other.source_container, ", ".join(sorted(names)),
                )  # fmt: skip
            elif other.source_container == container.name:
                yield problem(where, "A container cannot take volumes from itself.")
    yield from _check_volumes_from_cycle(task)


def _check_volumes_from_cycle(task: TaskDefinition) -> Problems:
    sources = {
        container.name: {item.source_container for item in container.volumes_from}
        - {container.name}
        for container in task.containers
    }
    # What is left after taking away, again and again, whoever needs nobody who is left.
    while free := [name for name, needed in sources.items() if not needed & set(sources)]:
        for name in free:
            del sources[name]
    if sources:
        index = next(i for i, c in enumerate(task.containers) if c.name in sources)
        yield problem(
            f"containerDefinitions[{index}].volumesFrom",
            "Container volumesFrom must not form a cycle.",
            ", ".join(sorted(sources)),
        )


# ---- the rest ----


def check_system_controls(task: TaskDefinition) -> Problems:
    """Contract 4.6: what a namespace of the task owns."""
    for path, container in each_container(task):
        for index, control in enumerate(container.system_controls):
            where = f"{path}.systemControls[{index}]"
            name = control.namespace or ""
            allowed = name in IPC_SYSCTLS or name.startswith(("net.", "fs.mqueue."))
            if not allowed or not _SYSCTL.fullmatch(name):
                yield problem(
                    f"{where}.namespace",
                    f"Invalid systemControls namespace '{name}' for container '{container.name}'.",
                    name, "net.*, fs.mqueue.*, " + ", ".join(sorted(IPC_SYSCTLS)),
                )  # fmt: skip
            if not control.value:
                yield problem(f"{where}.value", "systemControls value should not be empty.")


def check_restart_policies(task: TaskDefinition) -> Problems:
    """Contract 2.9, 3.8."""
    for path, container in each_container(task):
        policy = container.restart_policy
        if policy is None:
            continue
        if not 60 <= policy.restart_attempt_period_s <= 1800:
            yield problem(
                f"{path}.restartPolicy.restartAttemptPeriod",
                f"The 'restartAttemptPeriod' setting for container '{container.name}' must be "
                "between 60 and 1800.",
                policy.restart_attempt_period_s,
                "60 to 1800",
            )
        if len(policy.ignored_exit_codes) > 50:
            yield problem(
                f"{path}.restartPolicy.ignoredExitCodes", "Too many ignored exit codes.",
                len(policy.ignored_exit_codes), "at most 50",
            )  # fmt: skip


RESOURCE_RULES = (
    check_volumes,
    check_mounts,
    check_system_controls,
    check_restart_policies,
)
