"""The blocking steps of a task's life, each one function: provision, start a container, remove.

They run on the worker pool, know one task each, and raise; what an error means for the task is
decided by the state machine (task.py). Removal is idempotent: every name derives from the task id.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from fargatelite import names
from fargatelite.cgroups.cgroup import BlockIoLimits, Cgroup, CgroupLimits
from fargatelite.cgroups.detect import detect_driver
from fargatelite.cgroups.disks import find_disk
from fargatelite.errors import FargateliteError, HostUnsupported, SandboxFailed
from fargatelite.host import Host, can_run_programs_of
from fargatelite.network.slot import PortPublication, Slot
from fargatelite.rundir import RunDirectory, ensure_private_directory
from fargatelite.runtime.apparmor import ensure_profile
from fargatelite.runtime.beside import beside
from fargatelite.runtime.container_files import directory_of, hostname_of, write_task_files
from fargatelite.runtime.devices import container_rules, find_devices, task_rules
from fargatelite.runtime.secret_files import SecretFiles
from fargatelite.runtime.trace import Timeline
from fargatelite.sandbox.compile import (
    ContainerSpec,
    HostLimits,
    capabilities_of,
    compile_pause,
    compile_rlimits,
    compile_sysctls,
    resolve_process,
)
from fargatelite.sandbox.mounts import TmpfsMount, VolumeMount, parse_tmpfs
from fargatelite.sandbox.plan import encode_plan
from fargatelite.sandbox.rootfs import SHM_BYTES, Directories
from fargatelite.sandbox.seccomp import load_program
from fargatelite.sandbox.seccomp_profile import SeccompProfile
from fargatelite.security_groups import SecurityGroup
from fargatelite.settings import BlockIo, Settings
from fargatelite.shim import ProcessStarted, Ready, Shim
from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition

if TYPE_CHECKING:
    from fargatelite.cgroups.cgroup import Driver
    from fargatelite.images.image import Image
    from fargatelite.metadata.server import OpenedEndpoint
    from fargatelite.runtime.inputs import ContainerInputs

__all__ = [
    "PID_HOLDER",
    "Launched",
    "create_group",
    "hostname_of",
    "make_directories",
    "make_sandbox",
    "make_spec",
    "platform_of",
    "privileges_of",
    "provision",
    "remove_task",
    "reset_overlay",
    "task_limits",
]

PERIOD_US = 100_000  # contract 4.3
CPU_UNITS_PER_CPU = 1024
SHIM_TIMEOUT_S = 10.0
MIN_SHARES = 2  # contract 2.2: null, 0 and 1 mean 2
PIDS_PER_TASK = 32768
"""No limit is documented for Fargate (contract 4.3); this one keeps a fork bomb from taking the
host's pids (4,194,304 on 64 bit) from everybody else."""

PID_HOLDER = 900
"""Process number of the pid namespace's PID 1 in a task with pidMode `task`."""

_SHM = "/dev/shm"  # noqa: S108 - the host's shared memory, not a temporary file of ours
METADATA = "http://169.254.170.2"


class Launched:
    """What the supervisor holds of a provisioned task."""

    def __init__(self, slot: Slot, cgroup: Cgroup, shim: Shim, ready: Ready) -> None:
        self.slot = slot
        self.cgroup = cgroup
        self.shim = shim
        self.ready = ready
        self._opened: OpenedEndpoint | None = None

    def open_endpoint(self) -> None:
        """Opens the metadata endpoint, for `take_endpoint`. Raises: NetworkFailed."""
        from fargatelite.metadata.server import open_endpoint

        self._opened = open_endpoint(self.ready.network_namespace)

    def take_endpoint(self) -> OpenedEndpoint:
        """The opened endpoint, for a server to have."""
        opened, self._opened = self._opened, None
        assert opened is not None, "it is opened once and served once"
        return opened

    def _close_descriptors(self) -> None:
        if self._opened is not None:
            self._opened.close()
        os.close(self.ready.user_namespace)
        os.close(self.ready.network_namespace)

    def close(self) -> None:
        """Closes descriptors; the shim's namespaces live as long as it does."""
        self._close_descriptors()
        self.shim.close()

    def abort(self) -> None:
        """Ends a sandbox that this process made: of a task that could not be provisioned."""
        self._close_descriptors()
        self.shim.abort()


def task_limits(definition: TaskDefinition, settings: Settings) -> CgroupLimits:
    """Fargate's hard caps of a task (contract 4.3); on EC2 a size that is not given is no cap.
    With `cpu_burst` CPU is a share among tasks and no cap.

    Raises: HostUnsupported when block I/O is to be bounded on a data root without a disk.
    """
    has_burst = settings.beyond_fargate.cpu_burst
    cpu_units = definition.cpu_units or sum(item.cpu_units for item in definition.containers)
    is_capped = definition.cpu_units > 0 and not has_burst
    return CgroupLimits(
        cpu_quota_us=cpu_units * PERIOD_US // CPU_UNITS_PER_CPU if is_capped else None,
        cpu_period_us=PERIOD_US,
        # Among capped tasks the weight is equal, as with the ECS agent (task_linux.go,
        # buildExplicitLinuxCPUSpec sets no shares): with weights by size the threads of a large
        # task that are spread over CPUs outweigh a small task on each of them, and what it wakes
        # for waits, though it is below its cap.
        cpu_shares=None if is_capped else max(MIN_SHARES, cpu_units),
        memory_bytes=definition.memory_mib * 2**20 if definition.memory_mib else None,
        memory_soft_bytes=None,
        pids_max=PIDS_PER_TASK,
        block_io=_block_io_limits(settings),
        more_devices=task_rules(definition),
    )


def _block_io_limits(settings: Settings) -> BlockIoLimits | None:
    bounds = settings.block_io
    if bounds == BlockIo():
        return None
    return BlockIoLimits(
        disk=find_disk(Path(settings.data_root)),
        read_bytes_per_s=bounds.read_bytes_per_s,
        write_bytes_per_s=bounds.write_bytes_per_s,
        read_operations_per_s=bounds.read_operations_per_s,
        write_operations_per_s=bounds.write_operations_per_s,
    )


def container_limits(container: ContainerDefinition) -> CgroupLimits:
    """A container's share of its task: relative CPU, hard and soft memory (contract 2.2)."""
    soft = container.memory_reservation_mib
    hard = container.memory_mib
    return CgroupLimits(
        cpu_quota_us=None,
        cpu_period_us=PERIOD_US,
        cpu_shares=max(MIN_SHARES, container.cpu_units),
        memory_bytes=hard * 2**20 if hard is not None else None,
        memory_soft_bytes=soft * 2**20 if soft is not None else None,
        oom_group=True,
        pids_max=None,
        more_devices=container_rules(container),
    )


def provision(
    settings: Settings,
    run: RunDirectory,
    definition: TaskDefinition,
    publish: tuple[PortPublication, ...],
    timeline: Timeline,
    open_endpoint: Callable[[Launched], None],
    address: str | None = None,
    sandbox: Launched | None = None,
    groups: tuple[SecurityGroup, ...] = (),
    network_mbit: int = 0,
) -> Launched:
    """Slot, groups, shim with its namespaces, storage, network, generated files, endpoint.

    `sandbox` has the first five already (`make_sandbox`), and belongs to this function from now on.
    Raises: FargateliteError; what was made is found again by `remove_task`.
    """

    def fit(made: Launched) -> None:
        _fit_sandbox(settings, run, definition, made, timeline)
        open_endpoint(made)

    try:
        check_platform(definition)
        limits = task_limits(definition, settings)
        (settings.records / run.task_id / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.ledgers.mkdir(mode=0o700, exist_ok=True)
        if sandbox is None:
            sandbox = make_sandbox(
                settings, run, timeline, limits=limits, network_mode=definition.network_mode,
                storage_gib=definition.ephemeral_storage_gib, publish=publish, address=address,
                groups=groups, network_mbit=network_mbit, meanwhile=fit,
            )  # fmt: skip
            _bound_unwritten(settings, run, limits)
            return sandbox
        with timeline.phase("task cgroup"):
            detect_driver().create(names.cgroup_path(run.task_id), limits)
        if publish or groups or network_mbit:
            from fargatelite.network import connect

            with timeline.phase("publish"):
                connect.readmit(sandbox.slot, publish, groups, network_mbit=network_mbit)
        fit(sandbox)
        _bound_unwritten(settings, run, limits)
    except BaseException:
        if sandbox is not None:
            sandbox.abort()
        raise
    return sandbox


def make_sandbox(
    settings: Settings,
    run: RunDirectory,
    timeline: Timeline,
    *,
    limits: CgroupLimits,
    network_mode: str | None,
    storage_gib: int,
    publish: tuple[PortPublication, ...] = (),
    address: str | None = None,
    groups: tuple[SecurityGroup, ...] = (),
    network_mbit: int = 0,
    meanwhile: Callable[[Launched], None] | None = None,
) -> Launched:
    """Slot, shim with its namespaces, storage, task group, network, the endpoint's socket: what
    needs no definition.

    `meanwhile` is called with all but the storage, which waits for a disk.
    Raises: FargateliteError; what was made is found again by `remove_task`.
    """
    from fargatelite.network import connect, pool
    from fargatelite.storage import ephemeral

    with timeline.phase("slot"):
        slot = pool.SlotPool(Path(settings.run_root)).allocate(run.task_id, address)
    with timeline.phase("shim"):
        shim = Shim.start(run.path, slot.uid_base, slot.uid_count)
    launched: Launched | None = None

    def make_storage() -> None:
        if settings.storage_backend != "unlimited":
            with timeline.phase("ephemeral storage"):
                ephemeral.create_storage(
                    settings.storage,
                    settings.cache,
                    settings.layers / run.task_id,
                    run.task_id,
                    storage_gib,
                    settings.storage_backend,
                )
        # Last: the kernel makes groups and processes wait while it moves one.
        if shim.pid is not None:
            with timeline.phase("shelter"):
                detect_driver().shelter(shim.pid)

    try:
        # The shim makes its namespaces meanwhile.
        with beside(make_storage):
            with timeline.phase("task cgroup"):
                cgroup = detect_driver().create(names.cgroup_path(run.task_id), limits)
            with timeline.phase("namespaces"):
                ready = shim.wait_ready()
            launched = Launched(slot, cgroup, shim, ready)
            with timeline.phase("network"):
                if network_mode == "none":
                    connect.connect_loopback(ready.network_namespace)
                elif network_mode != "host":
                    connect.connect(
                        slot, ready.network_namespace, publish=publish, groups=groups,
                        network_mbit=network_mbit,
                    )  # fmt: skip
            if network_mode not in ("host", "none"):
                with timeline.phase("metadata socket"):
                    launched.open_endpoint()
            if meanwhile is not None:
                meanwhile(launched)
    except BaseException:
        if launched is not None:
            launched.abort()
        else:
            shim.abort()
        raise
    return launched


def _bound_unwritten(settings: Settings, run: RunDirectory, limits: CgroupLimits) -> None:
    from fargatelite.storage.ephemeral import bound_unwritten

    if (
        settings.storage_backend == "unlimited"
        or limits.memory_bytes is None
        or detect_driver().version != 1
    ):
        return
    bound_unwritten(
        settings.storage, settings.layers / run.task_id, run.task_id, limits.memory_bytes
    )


def _fit_sandbox(
    settings: Settings,
    run: RunDirectory,
    definition: TaskDefinition,
    launched: Launched,
    timeline: Timeline,
) -> None:
    """What a definition adds to a sandbox."""
    from fargatelite.storage import efs

    for volume in definition.volumes:
        if volume.efs is not None and volume.name is not None:
            with timeline.phase(f"mount {volume.efs.file_system_id}"):
                efs.mount_efs(settings, run.task_id, volume.name, volume.efs)
    if definition.pid_mode == "task":
        with timeline.phase("pid namespace"):
            _start_pid_holder(settings, run, launched.shim)
    write_task_files(run, definition, launched.slot)


def _start_pid_holder(settings: Settings, run: RunDirectory, shim: Shim) -> None:
    # A group of its own: v2 has no processes in a group that has groups below it, and no container
    # is named with a dot.
    cgroup = detect_driver().create(
        names.cgroup_path(run.task_id, ".pids"),
        CgroupLimits(
            cpu_quota_us=None,
            cpu_period_us=PERIOD_US,
            cpu_shares=MIN_SHARES,
            memory_bytes=None,
            memory_soft_bytes=None,
            pids_max=None,
        ),
    )
    plan = compile_pause(
        join_files=cgroup.join_files,
        clone_into=cgroup.clone_into,
        seccomp=load_program(settings.cache, 0),
    )
    shim.start_process(PID_HOLDER, encode_plan(plan))
    started = shim.receive(SHIM_TIMEOUT_S)
    if not isinstance(started, ProcessStarted):
        raise SandboxFailed(f"cannot make the task's pid namespace: {started}")


def _own_group_mounts(cgroup: Cgroup) -> dict[str, str]:
    """Where the container sees its own group: v2 at the top, v1 below each controller's name."""
    if cgroup.clone_into is not None:
        return {"/sys/fs/cgroup": cgroup.clone_into}
    return {
        f"/sys/fs/cgroup/{Path(path).relative_to('/sys/fs/cgroup').parts[0]}": str(
            Path(path).parent
        )
        for path in cgroup.join_files
        if path.startswith("/sys/fs/cgroup/")
    }


def injected_environment(
    settings: Settings,
    runtime_id: str,
    launch_type: str,
    *,
    has_endpoint: bool,
    credentials_id: str | None,
) -> dict[str, str]:
    """The variables of contract 4.7 that every container gets; the endpoint's only where it is."""
    endpoint = {
        "ECS_CONTAINER_METADATA_URI": f"{METADATA}/v3/{runtime_id}",
        "ECS_CONTAINER_METADATA_URI_V4": f"{METADATA}/v4/{runtime_id}",
        "ECS_AGENT_URI": f"{METADATA}/api/{runtime_id}",
    }
    if credentials_id is not None:
        endpoint["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = f"/v2/credentials/{credentials_id}"
    return {
        "AWS_EXECUTION_ENV": f"AWS_ECS_{launch_type}",
        **(endpoint if has_endpoint else {}),
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
    }


class Privileges(NamedTuple):
    """What a container's processes may do: capabilities, system calls, what /proc shows."""

    capabilities: int
    seccomp: bytes
    apparmor: str
    has_new_privileges: bool
    is_unmasked: bool


def privileges_of(
    settings: Settings, container: ContainerDefinition, seccomp: SeccompProfile | None = None
) -> Privileges:
    """Fargate's set and filter, and what the definition changes of them (contract 2.7, 4.2).

    `privileged` is every capability within the task's user namespace, not the host's. Whoever runs
    the task has the last word: a `seccomp` profile of theirs holds for every container.
    Raises: HostUnsupported, ConfigurationInvalid as `load_program`; HostUnsupported without the
    AppArmor profile that the settings require.
    """
    linux = container.linux_parameters
    asked = linux.capabilities if linux is not None else None
    capabilities = capabilities_of(asked.add, asked.drop) if asked else capabilities_of((), ())
    if container.privileged:
        capabilities = capabilities_of(("ALL",), ())
    options = container.docker_security_options
    is_unfiltered = seccomp is None and (container.privileged or "seccomp:unconfined" in options)
    return Privileges(
        capabilities=capabilities,
        seccomp=b"" if is_unfiltered else load_program(settings.cache, capabilities, seccomp),
        apparmor="" if container.privileged else ensure_profile(settings),
        has_new_privileges="no-new-privileges" not in options,
        is_unmasked=container.privileged,
    )


def compile_filters(
    settings: Settings, definition: TaskDefinition, seccomp: SeccompProfile
) -> None:
    """Has the filters of a user's profile ready for every container, so that one which libseccomp
    does not take is refused before anything is made.

    Raises: ConfigurationInvalid, HostUnsupported.
    """
    ensure_private_directory(Path(settings.data_root))
    for container in definition.containers:
        privileges_of(settings, container, seccomp)


def platform_of(definition: TaskDefinition) -> str:
    """The OCI platform of a task definition's `runtimePlatform`."""
    return "linux/arm64" if definition.cpu_architecture == "ARM64" else "linux/amd64"


def check_platform(definition: TaskDefinition) -> None:
    """Raises: HostUnsupported for an architecture that this host cannot run."""
    architecture = platform_of(definition).removeprefix("linux/")
    if not can_run_programs_of(architecture):
        raise HostUnsupported(
            f"this host ({platform.machine()}) cannot run {architecture} programs: register an "
            "interpreter for them (on Debian: apt-get install qemu-user-static binfmt-support), or "
            "set runtimePlatform.cpuArchitecture to the host's"
        )


def network_of(
    definition: TaskDefinition, container: ContainerDefinition
) -> Literal["task", "host", "none"]:
    """Which network namespace a container is in: `none` is one of its own, without interfaces."""
    if container.disable_networking:
        return "none"
    return "host" if definition.network_mode == "host" else "task"


def shm_bytes_of(container: ContainerDefinition) -> int:
    """The size of /dev/shm; Docker's 64 MiB by default (contract 4.3)."""
    linux = container.linux_parameters
    size_mib = linux.shared_memory_size_mib if linux is not None else None
    return size_mib * 2**20 if size_mib is not None else SHM_BYTES


def host_ipc_mounts(definition: TaskDefinition) -> tuple[VolumeMount, ...]:
    """POSIX shared memory of the host goes with its IPC namespace (ipcMode host)."""
    if definition.ipc_mode != "host":
        return ()
    return (VolumeMount(source=_SHM, target=_SHM),)


def make_spec(
    *,
    settings: Settings,
    host: Host,
    run: RunDirectory,
    slot: Slot,
    cgroup: Cgroup,
    definition: TaskDefinition,
    container: ContainerDefinition,
    number: int,
    image: Image,
    image_path: Path,
    inputs: ContainerInputs,
    credentials_id: str | None = None,
    trace: bool,
    volumes: tuple[VolumeMount, ...] = (),
    pid_holder: int | None = None,
    launch_type: str = "FARGATE",
    seccomp: SeccompProfile | None = None,
) -> ContainerSpec:
    """A container's specification from definition and image; makes nothing.

    Raises: SandboxFailed for what the image cannot give: a user, a command.
    """
    task_id, config, files = run.task_id, image.config, directory_of(run, container)
    linux = container.linux_parameters
    tmpfs: tuple[TmpfsMount, ...] = ()
    if linux is not None:
        tmpfs = tuple(
            parse_tmpfs(item.container_path, item.size_mib, item.mount_options)
            for item in linux.tmpfs
        )
    hostname = hostname_of(slot, definition, container)
    privileges = privileges_of(settings, container, seccomp)
    process = resolve_process(
        entry_point=container.entry_point,
        command=container.command,
        image_entry_point=config.entrypoint,
        image_command=config.cmd,
        user=container.user,
        image_user=config.user,
        working_directory=container.working_directory,
        image_working_directory=config.working_dir,
        passwd=image.passwd,
        group=image.group,
        image_environment=config.env,
        injected=injected_environment(
            settings,
            names.runtime_id(task_id, number),
            launch_type,
            has_endpoint=definition.has_own_network and not container.disable_networking,
            credentials_id=credentials_id,
        ),
        environment=(
            *((item.name, item.value) for item in container.environment),
            *inputs.secrets.items(),
        ),
        environment_files=inputs.environment_files,
        hostname=hostname,
    )
    return ContainerSpec(
        name=container.name,
        number=number,
        process=process,
        directories=Directories(
            container=str(settings.layers / task_id / container.name),
            image=str(image_path),
            files={
                "/etc/hosts": str(files / "hosts"),
                "/etc/hostname": str(files / "hostname"),
                "/etc/resolv.conf": str(files / "resolv.conf"),
            },
            groups=_own_group_mounts(cgroup),
            volumes=(*volumes, *host_ipc_mounts(definition)),
            tmpfs=tmpfs,
            shm_bytes=shm_bytes_of(container),
            devices=find_devices(container),
        ),
        id_base=slot.uid_base,
        hostname=hostname,
        log_path=str(settings.records / task_id / "logs" / f"{container.name}.log"),
        log_max_bytes=settings.log_max_bytes,
        log_max_files=settings.log_max_files,
        join_files=cgroup.join_files,
        clone_into=cgroup.clone_into,
        seccomp=privileges.seccomp,
        capabilities=privileges.capabilities,
        apparmor=privileges.apparmor,
        has_new_privileges=privileges.has_new_privileges,
        is_unmasked=privileges.is_unmasked,
        network=network_of(definition, container),
        has_host_ipc=definition.ipc_mode == "host",
        has_host_pids=definition.pid_mode == "host",
        rlimits=compile_rlimits(
            tuple((item.name, item.soft_limit, item.hard_limit) for item in container.ulimits),
            HostLimits(nofile_hard=host.nofile_hard, can_raise_limits=host.can_raise_limits),
        ),
        trace_path=f"trace-{number}" if trace else None,
        readonly_root=container.readonly_root_filesystem,
        sysctls=compile_sysctls(
            tuple((item.namespace or "", item.value or "") for item in container.system_controls)
        ),
        has_init=linux is not None and linux.init_process_enabled,
        has_stdin=container.interactive,
        has_terminal=container.pseudo_terminal,
        pid_holder=pid_holder,
    )


def create_group(run: RunDirectory, container: ContainerDefinition) -> Cgroup:
    """A container's group; may be repeated. Raises: CgroupFailed."""
    path = names.cgroup_path(run.task_id, container.name)
    return detect_driver().create(path, container_limits(container))


def make_directories(
    settings: Settings, run: RunDirectory, slot: Slot, container: ContainerDefinition
) -> None:
    """The directories of a container's file system, in the task's own; may be repeated.

    Raises: OSError.
    """
    directory = settings.layers / run.task_id / container.name
    for name in ("lower", "upper", "work", "merged"):
        # overlayfs gives its root the mode and owner of the upper directory.
        (directory / name).mkdir(
            mode=0o755 if name == "upper" else 0o700, parents=True, exist_ok=True
        )
    os.chown(directory / "upper", slot.uid_base, slot.uid_base)


def reset_overlay(settings: Settings, run: RunDirectory, container: str) -> None:
    """Lets a container's writable layer be mounted again: a `volatile` overlay leaves a mark that
    refuses that, since a crash of the host may have lost data; this host has not crashed."""
    work = settings.layers / run.task_id / container / "work"
    shutil.rmtree(work)
    work.mkdir(mode=0o700)


def remove_task(
    settings: Settings,
    run: RunDirectory,
    driver: Driver,
    launched: Launched | None,
    release_images: Callable[[], None],
    timeline: Timeline,
) -> list[str]:
    """Removes all that a task has on this host except its run directory and its record.

    Every step is tried, whatever the ones before it did; returns what could not be done, for
    `stoppedReason`-like reporting and for `gc`, which does the same again.
    """
    from fargatelite.network import connect, pool
    from fargatelite.storage import efs, ephemeral

    failures: list[str] = []

    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        with timeline.phase(f"remove {name}"):
            try:
                yield
            except (FargateliteError, OSError) as error:
                failures.append(f"{name}: {error}")

    path = names.cgroup_path(run.task_id)
    with step("processes"):
        driver.kill(path)
    if launched is not None:
        with step("shim"):
            launched.close()
            launched.shim.reap()
    slots = pool.SlotPool(Path(settings.run_root))
    slot: Slot | None = None

    def disconnect() -> None:
        nonlocal slot
        with step("network"):
            slot = slots.find(run.task_id)
            if slot is not None:
                connect.disconnect(slot)

    with beside(disconnect):  # the kernel lets an interface go after a grace period: 10 to 25 ms
        with step("cgroups"):
            driver.remove(path)
        with step("images"):
            release_images()
        with step("secrets"):
            SecretFiles(settings, run.task_id).remove()
        with step("file systems of EFS"):
            efs.unmount_all(settings, run.task_id)
        with step("writable layers"):
            ephemeral.remove_storage(settings.storage, settings.layers / run.task_id, run.task_id)
    if slot is not None and not failures:  # its address and ids, when nothing has them any more
        with step("slot"):
            slots.release(run.task_id)
    return failures
