"""The blocking steps of one task, on the supervisor's pool; what comes of them is an event.

They hold what this process has of the task beyond its state: the shim's connection, images, the
plans of its containers, its endpoint. What an outcome means is decided on the loop (execute.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from fargatelite import names
from fargatelite.cgroups.detect import detect_driver
from fargatelite.errors import AwsFailed, FargateliteError, LogDriverFailed, SandboxFailed
from fargatelite.host import Host, read_boot_id
from fargatelite.meter.ledger import LedgerHeader
from fargatelite.network.slot import Slot
from fargatelite.rundir import EXITS_NAME, RunDirectory
from fargatelite.runtime import launch, shipping
from fargatelite.runtime import task as machine
from fargatelite.runtime.adopt import Found
from fargatelite.runtime.container_files import resolv_conf_of, write_container_files
from fargatelite.runtime.dependencies import ContainerStep
from fargatelite.runtime.describe import TaskFacts
from fargatelite.runtime.events import LogsDroppedEvent
from fargatelite.runtime.inputs import TaskInputs
from fargatelite.runtime.reasons import reason_of
from fargatelite.runtime.secret_files import SecretFiles
from fargatelite.runtime.trace import Timeline
from fargatelite.runtime.usage import meter_network, roll_up_ledger, sampled_group
from fargatelite.runtime.volumes import list_mounts, prepare_volumes
from fargatelite.sandbox.compile import ContainerSpec, compile_container, compile_guest
from fargatelite.sandbox.mounts import VolumeMount
from fargatelite.sandbox.plan import Plan, encode_plan
from fargatelite.settings import Settings
from fargatelite.shim import (
    ExitRecord,
    ProcessExited,
    ProcessStatus,
    Ready,
    Shim,
    read_exit_records,
)
from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition

if TYPE_CHECKING:
    from fargatelite.cgroups.cgroup import Cgroup
    from fargatelite.images.image import Image, PullProgress
    from fargatelite.metadata.faults import FaultInjector
    from fargatelite.metadata.server import Handle
    from fargatelite.meter.sampler import Sampler
    from fargatelite.runtime.endpoint import Live
    from fargatelite.runtime.record import TaskRecord
    from fargatelite.runtime.request import TaskRequest

__all__ = ["SHIM_GONE", "HeldContainer", "TaskWork"]

logger = logging.getLogger(__name__)

SHIM_TIMEOUT_S = 10.0
SHIM_GONE = "the process that holds the task (fargatelite-shim) has ended"


class HeldContainer:
    """What this process holds of one container beyond its state."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.image: Image | None = None
        self.image_path: Path | None = None
        self.group: Future[Cgroup] | None = None
        self.spec: ContainerSpec | None = None
        self.plan: Plan = ()
        self.cancel_check_timeout: Callable[[], None] | None = None
        self.is_check_timed_out = False


class TaskWork:
    """See the module. `tell` takes events to the loop, from any thread; `submit` has work done on
    the pool beside the caller's."""

    def __init__(
        self,
        settings: Settings,
        run: RunDirectory,
        definition: TaskDefinition,
        facts: TaskFacts,
        request: TaskRequest,
        *,
        live: Live,
        sampler: Sampler,
        timeline: Timeline,
        tell: Callable[[machine.Event], None],
        submit: Callable[[Callable[[], None]], None],
        on_progress: Callable[[PullProgress], None],
        on_dropped: Callable[[LogsDroppedEvent], None],
        sandbox: launch.Launched | None = None,
    ) -> None:
        self.settings = settings
        self.run = run
        self.definition = definition
        self.timeline = timeline
        self.sampler = sampler
        self.driver = detect_driver()
        self.containers = {
            container.name: HeldContainer(number)
            for number, container in enumerate(definition.containers)
        }
        self.launched: launch.Launched | None = None
        self._sandbox = sandbox
        self.pull_cancelled = threading.Event()
        self.logs = shipping.prepare(settings, run, definition, facts, on_dropped)
        self.leftovers: list[str] = []
        self._request = request
        self._live = live
        self._tell = tell
        self._submit = submit
        self._ready: Future[None] = Future()
        self._on_progress = on_progress
        self._host = Host.probe()
        self._inputs = TaskInputs(settings, definition, run.task_id, timeline, self.pull_cancelled)
        self._endpoint: Handle | None = None
        self._credentials_id: str | None = None
        self._volume_lock = threading.Lock()
        self._group_lock = threading.Lock()
        self._ready_lock = threading.Lock()
        self._is_over = False
        self._secret_files: SecretFiles | None = None
        self._has_images = False

    @property
    def credentials_id(self) -> str | None:
        """Part of the path at which containers find the task role's credentials."""
        return self._credentials_id

    def definition_of(self, name: str) -> ContainerDefinition:
        """The container of that name."""
        return next(item for item in self.definition.containers if item.name == name)

    # ---- provisioning ----

    def provision(self) -> None:
        """Slot, storage, groups, shim, network, endpoint, ledger; sets `launched`.

        Raises: FargateliteError; OSError. What was made is found again by `deprovision`.
        """
        for held in self.containers.values():
            held.group = Future()
        sandbox, self._sandbox = self._sandbox, None
        self.launched = launch.provision(
            self.settings, self.run, self.definition, self._request.publish, self.timeline,
            self._fit, self._request.address, sandbox, self._request.groups,
            self._request.network_mbit,
        )  # fmt: skip

    def _fit(self, launched: launch.Launched) -> None:
        self._submit(self._make_container_groups)
        self._open_endpoint(launched)

    def _make_container_groups(self) -> None:
        """Beside the rest of `provision`; `start_container` waits for it, and raises what it
        raised."""
        with self._group_lock:
            for container in self.definition.containers:
                group = self.containers[container.name].group
                assert group is not None
                try:
                    if self._is_over:
                        raise SandboxFailed("the task has ended")
                    group.set_result(launch.create_group(self.run, container))
                except BaseException as error:  # noqa: BLE001  raised again by start_container
                    group.set_exception(error)

    def make_ready(self) -> None:
        """Directories of the containers' file systems, the ledger and its first sample; after
        `provision`, while images are looked for. No container starts before it is done; what it
        raised is raised there."""
        launched = self.launched
        assert launched is not None
        with self._ready_lock:
            try:
                if self._is_over:
                    raise SandboxFailed("the task has ended")
                for container in self.definition.containers:
                    launch.make_directories(self.settings, self.run, launched.slot, container)
                self._meter(launched)
                self._ready.set_result(None)
            except BaseException as error:  # noqa: BLE001  raised again by start_container
                self._ready.set_exception(error)

    def _meter(self, launched: launch.Launched) -> None:
        self.sampler.add(
            self.run.task_id,
            self.settings.ledgers / f"{self.run.task_id}.ledger",
            LedgerHeader(
                task_id=self.run.task_id,
                boot_id=read_boot_id(),
                created_at_ns=time.time_ns(),
                cpu_units=self.definition.cpu_units,
                memory_mib=self.definition.memory_mib,
            ),
            sampled_group(self.settings, self.run.task_id, launched.cgroup),
        )
        if self.definition.has_own_network:
            netns_fd = launched.ready.network_namespace
            meter_network(self.sampler, self.run.task_id, netns_fd)

    def reattach(self, recorded: TaskRecord) -> Found:
        """Connects to what a supervisor that is gone has left: shim, groups, ledger, endpoint,
        images, logs. `launched` stays None when the shim is gone too.

        Raises: FargateliteError; OSError.
        """
        self._credentials_id = recorded.credentials_id
        self._has_images = True
        self._find_images(recorded.state)
        try:
            shim = Shim.connect(self.run.path)
        except (FileNotFoundError, ConnectionRefusedError):
            self._resume_ended_logs(recorded.state)
            return Found(exits=self._read_exits())
        live = {}
        shim.request_status()
        while not isinstance(event := shim.receive(SHIM_TIMEOUT_S), Ready):
            if event is None:
                self._resume_ended_logs(recorded.state)
                return Found(exits=self._read_exits())
            if isinstance(event, ProcessStatus):
                live[event.number] = (event.pid, event.started_at_ns)
            elif isinstance(event, ProcessExited):
                live.pop(event.number, None)
        # After what lives: one that ends in between is among those that ended, which the shim has
        # written down before it lets go of them, or tells so when we listen.
        exits = self._read_exits()
        if recorded.slot is None:
            shim.close()
            return Found(live=live, exits=exits)
        cgroup = self.driver.create(
            names.cgroup_path(self.run.task_id),
            launch.task_limits(self.definition, self.settings),
        )
        self.launched = launched = launch.Launched(recorded.slot, cgroup, shim, event)
        if self.definition.has_own_network:
            from fargatelite.network import connect

            connect.readmit(
                recorded.slot, self._request.publish, self._request.groups,
                network_mbit=self._request.network_mbit,
            )  # fmt: skip
        self._meter(launched)
        self._ready.set_result(None)
        if self.definition.has_own_network:
            launched.open_endpoint()
        self._open_endpoint(launched)
        if recorded.state.pending == "deprovision":
            self._resume_ended_logs(recorded.state, shim)
            return Found(live=live, exits=exits)
        self._take_inputs(recorded.state)
        for item in recorded.state.containers:
            number = self.containers[item.name].number
            if item.step in (ContainerStep.STARTING, ContainerStep.RUNNING) and number in live:
                container = self.definition_of(item.name)
                self.sampler.add_container(
                    self.run.task_id, item.name,
                    launch.create_group(self.run, container),
                )  # fmt: skip
            # One that has neither is started anew, and its log followed then.
            has_run = number in live or number in exits
            if self.logs is not None and has_run:
                self.logs.resume(item.name, shim, number, is_live=number in live)
        return Found(live=live, exits=exits)

    def _read_exits(self) -> dict[int, ExitRecord]:
        return {record.number: record for record in read_exit_records(self.run.path / EXITS_NAME)}

    def _resume_ended_logs(self, state: machine.TaskState, shim: Shim | None = None) -> None:
        """What is left of a task whose containers have all ended is sent before it is removed."""
        if self.logs is None or state.pending in ("provision", "pull"):
            return
        try:
            self._inputs.begin()
            self._inputs.wait()
            self.logs.open(self._inputs.secret_options, is_new=False)
        except FargateliteError as error:
            logger.error("task %s: what was not sent stays here: %s", self.run.task_id, error)
            return
        for name, held in self.containers.items():
            self.logs.resume(name, shim, held.number, is_live=False)

    def _find_images(self, state: machine.TaskState) -> None:
        """What the store still has of the images that containers run."""
        from fargatelite.runtime.images import open_mounted, open_store

        mounted = open_mounted(self.settings)
        by_digest = {image.digest: image for image in open_store(self.settings).list_images()}
        for item in state.containers:
            image = by_digest.get(names.Digest(item.image_digest or ""))
            if image is not None:
                held = self.containers[item.name]
                held.image = image
                held.image_path = mounted.ensure_mounted(image, self.run.task_id)

    def _take_inputs(self, state: machine.TaskState) -> None:
        """Inputs for containers that are still to start, or may be started again; a pull that goes
        on takes them itself."""
        if state.pending is not None:
            return
        waiting = any(
            item.step < ContainerStep.RUNNING or item.restart_rule is not None
            for item in state.containers
        )
        if waiting or self.logs is not None:
            self._inputs.begin()
            self._inputs.wait()
        if self.logs is not None:
            self.logs.open(self._inputs.secret_options, is_new=False)

    def _open_endpoint(self, launched: launch.Launched) -> None:
        if not self.definition.has_own_network:
            return
        from fargatelite.runtime.endpoint import TaskEndpoint, get_metadata_server

        netns_fd = launched.ready.network_namespace
        limited = self.settings.storage_backend != "unlimited"
        storage = self.settings.layers / self.run.task_id if limited else None

        def make(faults: FaultInjector) -> TaskEndpoint:
            source = TaskEndpoint(
                self._live, self.definition, launched.slot, netns_fd, self.driver,
                launch.hostname_of(launched.slot), resolv_conf_of(self.definition, None),
                storage, faults, self._inputs.task_role, self._credentials_id,
            )  # fmt: skip
            self._credentials_id = source.credentials_id
            return source

        with self.timeline.phase("metadata endpoint"):
            self._endpoint = get_metadata_server().add_task(launched.take_endpoint(), make)

    def _close_endpoint(self) -> None:
        if self._endpoint is not None:
            from fargatelite.runtime.endpoint import get_metadata_server

            get_metadata_server().remove_task(self._endpoint)

    # ---- images ----

    def pull(self) -> None:
        """Images and inputs; tells PullFinished, or what failed."""
        from fargatelite.runtime.images import open_mounted, open_store

        self._tell(machine.PullStarted(at_ns=time.time_ns()))
        self._inputs.begin()
        pulled: dict[str, Image] = {}
        for container in self.definition.containers:
            name, reference = container.name, container.image
            try:
                if reference not in pulled:
                    store = open_store(self.settings)
                    with self.timeline.phase(f"pull {reference}"):
                        pulled[reference] = store.pull(
                            reference,
                            policy=self._request.pull,
                            platform=launch.platform_of(self.definition),
                            on_progress=self._on_progress,
                            cancelled=self.pull_cancelled,
                            credentials=self._inputs.registry_credentials(container),
                        )
                image = pulled[reference]
                self._has_images = True
                with self.timeline.phase(f"mount image of {name}"):
                    path = open_mounted(self.settings).ensure_mounted(image, self.run.task_id)
            except (FargateliteError, OSError) as error:
                self._pull_failed(name, self._inputs.failure or error)
                return
            held = self.containers[name]
            held.image, held.image_path = image, path
            self._tell(
                machine.ContainerPulled(at_ns=time.time_ns(), name=name, digest=image.digest)
            )
        try:
            self._inputs.wait()
            if self.logs is not None:
                with self.timeline.phase("log drivers"):
                    self.logs.open(self._inputs.secret_options)
        except FargateliteError as error:
            self._pull_failed(name, self._inputs.failure or error)
            return
        self._tell(machine.PullFinished(at_ns=time.time_ns()))

    def _pull_failed(self, name: str, error: Exception) -> None:
        reason, now = reason_of(error, "CannotPullContainerError"), time.time_ns()
        if isinstance(error, AwsFailed | LogDriverFailed):
            self._tell(machine.InputsFailed(at_ns=now, reason=reason))
        else:
            self._tell(machine.PullFailed(at_ns=now, name=name, reason=reason))

    # ---- containers ----

    def start_container(self, name: str) -> None:
        """Prepares a container and has the shim start it; tells only of a failure."""
        held, launched = self.containers[name], self.launched
        try:
            if launched is None:
                raise SandboxFailed(SHIM_GONE)
            self._prepare(name, is_new=True)
            launched.shim.start_process(held.number, encode_plan(held.plan))
        except (FargateliteError, OSError, ValueError) as error:
            reason = reason_of(error, "CannotStartContainerError")
            self._tell(
                machine.ContainerStartFailed(
                    at_ns=time.time_ns(), name=name, reason=reason, exit_code=None
                )
            )

    def _prepare(self, name: str, *, is_new: bool) -> None:
        """Makes group, files, volumes and plan of a container. Not `is_new`: it has run before,
        under another supervisor; its log is followed already."""
        held, launched = self.containers[name], self.launched
        assert launched is not None
        if held.image is None or held.image_path is None:
            raise SandboxFailed(f"the image of container {name} is no longer in the store")
        with self.timeline.phase(f"prepare {name}"):
            container = self.definition_of(name)
            self._ready.result()
            if held.group is not None:
                cgroup = held.group.result()
            else:  # another supervisor provisioned, and may not have come that far
                launch.make_directories(self.settings, self.run, launched.slot, container)
                cgroup = launch.create_group(self.run, container)
            write_container_files(self.run, self.definition, container, launched.slot)
            inputs = self._inputs.of_container(container)
            volumes = (
                *self._prepare_volumes(container, launched.slot),
                *self._write_secret_files(container, inputs.secrets, launched.slot),
            )
            held.spec = launch.make_spec(
                settings=self.settings,
                host=self._host,
                run=self.run,
                slot=launched.slot,
                cgroup=cgroup,
                definition=self.definition,
                container=container,
                number=held.number,
                image=held.image,
                image_path=held.image_path,
                inputs=inputs,
                credentials_id=self._credentials_id,
                trace=self._request.trace,
                volumes=volumes,
                pid_holder=launch.PID_HOLDER if self.definition.pid_mode == "task" else None,
                launch_type=self._live.facts.launch_type,
                seccomp=self._request.seccomp,
            )
            if self.logs is not None:
                held.spec = self.logs.wire(name, held.spec)
                if is_new:
                    self.logs.start(name, launched.shim, held.number)
            held.plan = compile_container(held.spec)
            self.run.write_guest_plan(name, encode_plan(compile_guest(held.spec)))
            if is_new:
                self.sampler.add_container(self.run.task_id, name, cgroup)

    def _write_secret_files(
        self, container: ContainerDefinition, secrets: Mapping[str, str], slot: Slot
    ) -> tuple[VolumeMount, ...]:
        if self.settings.beyond_fargate.secret_files_refresh_s is None or not secrets:
            return ()
        with self._volume_lock:
            if self._secret_files is None:
                self._secret_files = SecretFiles(self.settings, self.run.task_id)
                self._secret_files.create()
            return (self._secret_files.write(container.name, secrets, slot.uid_base),)

    def refresh_secret_files(self) -> None:
        """Fetches secrets anew and replaces the files whose values changed; one that cannot be had
        stays as it is."""
        files, launched = self._secret_files, self.launched
        if files is None or launched is None:
            return
        try:
            for container, values in self._inputs.fetch_again().items():
                with self._volume_lock:
                    if values:
                        files.write(container, values, launched.slot.uid_base)
        except (FargateliteError, OSError) as error:
            logger.warning("task %s: secret files stay as they are: %s", self.run.task_id, error)

    def _prepare_volumes(
        self, container: ContainerDefinition, slot: Slot
    ) -> tuple[VolumeMount, ...]:
        from fargatelite.runtime.images import open_store

        images = {name: held.image for name, held in self.containers.items()}
        mounts = list_mounts(self.definition, container, images)
        if not mounts:
            return ()
        with self._volume_lock:
            return prepare_volumes(
                self.settings, self.run.task_id, slot, mounts, images,
                open_store(self.settings).unpack_directory,
            )  # fmt: skip

    def restart_container(self, name: str) -> None:
        """The same group and writable layer; processes that outlived the first one go before."""
        held = self.containers[name]
        try:
            if self.launched is None:
                raise SandboxFailed(SHIM_GONE)
            self.driver.kill(names.cgroup_path(self.run.task_id, name))
            if not held.plan:
                self._prepare(name, is_new=False)
            launch.reset_overlay(self.settings, self.run, name)
            self.launched.shim.start_process(held.number, encode_plan(held.plan))
        except (FargateliteError, OSError, ValueError) as error:
            self._tell(
                machine.ContainerStartFailed(
                    at_ns=time.time_ns(),
                    name=name,
                    reason=reason_of(error, "CannotStartContainerError"),
                    exit_code=None,
                )
            )

    # ---- the end ----

    def deprovision(self) -> None:
        """Removes all of the task and tells so; `leftovers` says what could not be removed."""
        from fargatelite.runtime.images import open_mounted

        with self._group_lock, self._ready_lock:
            self._is_over = True
        self._close_endpoint()
        try:
            self.sampler.remove(self.run.task_id)  # takes the last sample
            roll_up_ledger(self.settings, self.run.task_id)
        except (FargateliteError, OSError) as error:
            logger.error("task %s: ledger: %s", self.run.task_id, error)

        if self.logs is not None:
            with self.timeline.phase("logs"):
                self.logs.drain()

        def release() -> None:
            if self._has_images:
                open_mounted(self.settings).release(self.run.task_id)

        self.leftovers = launch.remove_task(
            self.settings,
            self.run,
            self.driver,
            self.launched or self._sandbox,
            release,
            self.timeline,
        )
        for failure in self.leftovers:
            logger.error("task %s: left behind: %s", self.run.task_id, failure)
        self._tell(machine.DeprovisionFinished(at_ns=time.time_ns()))
