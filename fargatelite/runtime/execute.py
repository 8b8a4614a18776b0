"""One supervised task: feeds events to the state machine and carries out what it answers.

All state changes happen on the supervisor's thread. Blocking work goes to its pool; what comes back
is an event again.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fargatelite import names
from fargatelite.cgroups.detect import detect_driver
from fargatelite.errors import AwsFailed, FargateliteError, LogDriverFailed
from fargatelite.host import Host, read_boot_id
from fargatelite.meter.ledger import LedgerHeader
from fargatelite.network.slot import PortPublication, Slot
from fargatelite.rundir import RunDirectory
from fargatelite.runtime import launch, record, shipping
from fargatelite.runtime import task as machine
from fargatelite.runtime.close import close_state
from fargatelite.runtime.container_files import resolv_conf_of, write_container_files
from fargatelite.runtime.describe import TaskFacts, describe_state_change
from fargatelite.runtime.events import (
    ContainerEvent,
    Event,
    LogsDroppedEvent,
    PullEvent,
    StateChange,
    TaskEvent,
    append_event,
)
from fargatelite.runtime.guest import GUEST_NUMBER
from fargatelite.runtime.inputs import TaskInputs
from fargatelite.runtime.reasons import (
    describe_failure,
    reason_of,
    start_failure_exit_code,
    stop_signal_of,
)
from fargatelite.runtime.secret_files import SecretFiles
from fargatelite.runtime.supervise import Supervisor
from fargatelite.runtime.trace import Timeline, read_op_trace
from fargatelite.runtime.transitions import step, will_restart
from fargatelite.runtime.volumes import list_mounts, prepare_volumes
from fargatelite.sandbox.compile import (
    ContainerSpec,
    compile_container,
    compile_guest,
    compile_health_check,
)
from fargatelite.sandbox.mounts import VolumeMount
from fargatelite.sandbox.plan import Plan, encode_plan
from fargatelite.shim import (
    Failure,
    ProcessExited,
    ProcessFailed,
    ProcessStarted,
    Refused,
)
from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition

if TYPE_CHECKING:
    from fargatelite.images.image import Image, PullProgress
    from fargatelite.metadata.faults import FaultInjector
    from fargatelite.metadata.server import Handle
    from fargatelite.meter.sampler import Sampler

__all__ = ["SupervisedTask"]

logger = logging.getLogger(__name__)

_WORK_DEADLINE_S = 60.0  # no step of a launch blocks longer; a pull is cancelled

HEALTH_CHECK_NUMBER = 1000  # process numbers in the shim: containers from 0, checks from here


class _Container:
    """What this process holds of one container beyond its state."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.image: Image | None = None
        self.image_path: Path | None = None
        self.spec: ContainerSpec | None = None
        self.plan: Plan = ()
        self.cancel_check_timeout: Callable[[], None] | None = None
        self.is_check_timed_out = False


class SupervisedTask:
    """A task of this process. Methods without "on the loop" may be called from any thread."""

    def __init__(
        self,
        supervisor: Supervisor,
        run: RunDirectory,
        definition: TaskDefinition,
        state: machine.TaskState,
        facts: TaskFacts,
        *,
        wire: dict[str, object],
        pull_policy: str,
        publish: tuple[PortPublication, ...],
        address: str | None,
        trace: bool,
        sampler: Sampler,
        timeline: Timeline,
        on_event: Callable[[Event], None] | None,
        on_finished: Callable[[], None] | None = None,
    ) -> None:
        self.supervisor = supervisor
        self.settings = supervisor.settings
        self.run = run
        self.definition = definition
        self.state = state
        self.facts = facts
        self.wire = wire
        self.timeline = timeline
        self.op_traces: dict[str, list[tuple[str, int]]] = {}
        self._pull_policy = pull_policy
        self._publish = publish
        self._address = address
        self._trace = trace
        self._sampler = sampler
        self._on_event = on_event
        self._on_finished = on_finished
        self._host = Host.probe()
        self._driver = detect_driver()
        self._launched: launch.Launched | None = None
        self._endpoint: Handle | None = None
        self._credentials_id: str | None = None
        self._is_shim_watched = False
        self._containers = {
            container.name: _Container(number)
            for number, container in enumerate(definition.containers)
        }
        self._timers: dict[object, Callable[[], None]] = {}
        self._pull_cancelled = threading.Event()
        self._inputs = TaskInputs(
            self.settings, definition, run.task_id, timeline, self._pull_cancelled
        )
        self._requests_watch: int | None = None
        self._is_faulty = False
        self._leftovers: list[str] = []
        self._logs = shipping.prepare(self.settings, run, definition, facts, self._logs_dropped)
        self._dropped: dict[str, LogsDroppedEvent] = {}
        self._volume_lock = threading.Lock()
        self._secret_files: SecretFiles | None = None
        self._working = threading.Condition()
        self._work_count = 0
        self.changed = threading.Condition()
        self.is_finished = False

    # ---- any thread ----

    def begin(self) -> None:
        """Starts the task's life."""
        self.supervisor.add(self)
        self.supervisor.post(self._begin_on_loop, self)

    def request_stop(self, stop_code: str, reason: str) -> None:
        """Asks for a stop; a task that is stopping or stopped stays as it is."""
        self._post_event(
            machine.StopRequested(at_ns=time.time_ns(), stop_code=stop_code, reason=reason)
        )
        # A pull does not listen to the loop. After the request: the pull's failure follows from it.
        self._pull_cancelled.set()

    def stop_for_exit(self) -> None:
        """Asks for a stop because the supervising process ends."""
        self.request_stop("UserInitiated", "the process that ran the task ended")

    def wait_finished(self, timeout_s: float | None) -> bool:
        """Waits until the task is STOPPED and nothing is left of it; whether it came to that."""
        with self.changed:
            return self.changed.wait_for(lambda: self.is_finished, timeout_s)

    def record(self) -> record.TaskRecord:
        """The task as it is written down."""
        return record.TaskRecord(
            state=self.state,
            definition=self.wire,
            facts=self.facts,
            slot=self._launched.slot if self._launched is not None else None,
            publish=self._publish,
            phases=tuple(self.timeline.phases),
            leftovers=tuple(self._leftovers),
            logs_dropped=tuple(self._dropped.values()),
        )

    def _post_event(self, event: machine.Event) -> None:
        self.supervisor.post(lambda: self._feed(event), self)

    def _submit(self, work: Callable[[], None]) -> None:
        with self._working:
            self._work_count += 1

        def count_and_work() -> None:
            try:
                work()
            finally:
                with self._working:
                    self._work_count -= 1
                    self._working.notify_all()

        self.supervisor.pool.submit(count_and_work, self)

    # ---- on the loop ----

    def _begin_on_loop(self) -> None:
        self._requests_watch = self.supervisor.watch_directory(
            self.run.requests, self._look_for_desired, self
        )
        self._feed(machine.Created(at_ns=time.time_ns()))
        self._limit_run_time()
        self._look_for_desired()

    def _limit_run_time(self) -> None:
        limit_s = self.settings.beyond_fargate.max_run_time_s
        if limit_s is not None:
            reason = f"Task ran for {limit_s} s, this host's beyond_fargate.max_run_time_s"
            self._timers["max_run_time"] = self.supervisor.set_timer(
                time.time_ns() + limit_s * 1_000_000_000,
                lambda: self.request_stop("UserInitiated", reason),
                self,
            )

    def _look_for_desired(self) -> None:
        desired = self.run.read_desired()
        if desired is not None:
            self._pull_cancelled.set()
            self._feed(
                machine.StopRequested(
                    at_ns=time.time_ns(), stop_code=desired.stop_code, reason=desired.reason
                )
            )

    def _feed(self, event: machine.Event) -> None:
        """One step of the machine; its new state is on disk before its actions are begun."""
        if self.is_finished or self._is_faulty:
            return
        before = self.state
        self.state, actions = step(before, event)
        self.run.write_state(record.encode_record(self.record()))
        self._publish_changes(before, self.state, event.at_ns)
        for action in actions:
            self._carry_out(action)
        with self.changed:
            self.changed.notify_all()

    def _publish_changes(
        self, before: machine.TaskState, after: machine.TaskState, at_ns: int
    ) -> None:
        task_id = str(self.run.task_id)
        for old, new in zip(before.containers, after.containers, strict=True):
            if (old.last_status, old.health_status) != (new.last_status, new.health_status):
                self._emit(
                    ContainerEvent(
                        task_id=task_id,
                        at_ns=at_ns,
                        container=new.name,
                        last_status=str(new.last_status),
                        health_status=str(new.health_status),
                        exit_code=new.exit_code,
                        reason=new.reason,
                    )
                )
        if (before.last_status, before.desired_status) != (after.last_status, after.desired_status):
            self._emit(
                TaskEvent(
                    task_id=task_id,
                    at_ns=at_ns,
                    last_status=str(after.last_status),
                    desired_status=str(after.desired_status),
                    version=after.version,
                    stop_code=after.stop_code,
                    stopped_reason=after.stopped_reason,
                )
            )
        if before.version != after.version:
            change = describe_state_change(after, self.definition, self.facts, at_ns)
            self._emit(StateChange(task_id=task_id, at_ns=at_ns, event=change))

    def _emit(self, event: Event) -> None:
        if not isinstance(event, PullEvent):
            append_event(self.settings.records, self.run.task_id, event)
        callback = self._on_event
        if callback is not None:
            self.supervisor.call_back(lambda: callback(event))

    def _carry_out(self, action: machine.Action) -> None:
        match action:
            case machine.Provision():
                self._submit(self._provision)
            case machine.PullImages():
                self._submit(self._pull)
            case machine.StartContainer(name=name):
                self._submit(lambda: self._start_container(name))
            case machine.RestartContainer(name=name):
                self._submit(lambda: self._restart_container(name))
            case machine.SignalContainer(name=name):
                self._ask_to_stop(name)
            case machine.KillContainer(name=name):
                self._signal(name, signal.SIGKILL)
            case machine.RunHealthCheck(name=name):
                self._run_health_check(name)
            case machine.SetTimer(key=key, at_ns=at_ns):
                self._timers[key] = self.supervisor.set_timer(at_ns, lambda: self._fire(key), self)
            case machine.CancelTimer(key=key):
                cancel = self._timers.pop(key, None)
                if cancel is not None:
                    cancel()
            case machine.Deprovision():
                self._pull_cancelled.set()
                self._unwatch_shim()
                self._submit(self._deprovision)
            case machine.Finished():
                self._finish()

    def _ask_to_stop(self, name: str) -> None:
        image = self._containers[name].image
        number = stop_signal_of(image.config.stop_signal if image else None)
        if self._logs is not None and self._logs.is_router(name):
            logs = self._logs
            self._submit(lambda: logs.drain_into_router(lambda: self._signal(name, number)))
        else:
            self._signal(name, number)

    def _fire(self, key: machine.TimerKey) -> None:
        self._timers.pop(key, None)
        self._feed(machine.TimerFired(at_ns=time.time_ns(), key=key))

    def _signal(self, name: str, number: int) -> None:
        if self._launched is not None:
            try:
                self._launched.shim.signal_process(self._containers[name].number, number)
            except OSError as error:
                # The shim is gone, and with it (PR_SET_PDEATHSIG) its containers: _on_shim tells.
                logger.warning("task %s: cannot signal %s: %s", self.run.task_id, name, error)

    # ---- provisioning ----

    def _provision(self) -> None:
        launched: launch.Launched | None = None
        try:
            launched = launch.provision(
                self.settings, self.run, self.definition, self._publish, self.timeline,
                self._open_endpoint, self._address,
            )  # fmt: skip
            self._sampler.add(
                self.run.task_id,
                self.settings.ledgers / f"{self.run.task_id}.ledger",
                LedgerHeader(
                    task_id=self.run.task_id,
                    boot_id=read_boot_id(),
                    created_at_ns=time.time_ns(),
                    cpu_units=self.definition.cpu_units,
                    memory_mib=self.definition.memory_mib,
                ),
                launched.cgroup,
            )
        except (FargateliteError, OSError) as error:
            self._launched = launched  # to be removed, and nothing else
            reason = reason_of(error, "ResourceInitializationError")
            self._post_event(machine.ProvisionFailed(at_ns=time.time_ns(), reason=reason))
            return
        made = launched
        self.supervisor.post(lambda: self._provisioned(made), self)

    def _open_endpoint(self, launched: launch.Launched) -> None:
        if not self.definition.has_own_network:
            return
        from fargatelite.runtime.endpoint import TaskEndpoint, get_metadata_server

        netns_fd = launched.ready.network_namespace
        limited = self.settings.storage_backend != "unlimited"
        storage = self.settings.layers / self.run.task_id if limited else None

        def make(faults: FaultInjector) -> TaskEndpoint:
            source = TaskEndpoint(
                self, self.definition, launched.slot, netns_fd, self._driver,
                launch.hostname_of(launched.slot), resolv_conf_of(self.definition, None),
                storage, faults, self._inputs.task_role,
            )  # fmt: skip
            self._credentials_id = source.credentials_id
            return source

        with self.timeline.phase("metadata endpoint"):
            self._endpoint = get_metadata_server().add_task(netns_fd, make)

    def _close_endpoint(self) -> None:
        if self._endpoint is not None:
            from fargatelite.runtime.endpoint import get_metadata_server

            get_metadata_server().remove_task(self._endpoint)

    def _provisioned(self, launched: launch.Launched) -> None:
        self._launched = launched
        if self.definition.has_own_network:
            self.facts = msgspec.structs.replace(
                self.facts,
                private_ipv4_address=launched.slot.address,
                mac_address=launched.slot.mac,
                private_dns_name=launch.hostname_of(launched.slot),
            )
        self.supervisor.watch(launched.shim, self._on_shim, self)
        self._is_shim_watched = True
        self._feed(machine.ProvisionSucceeded(at_ns=time.time_ns()))

    def _unwatch_shim(self) -> None:
        if self._is_shim_watched and self._launched is not None:
            self.supervisor.unwatch(self._launched.shim)
            self._is_shim_watched = False

    # ---- images ----

    def _pull(self) -> None:
        from fargatelite.runtime.images import open_store

        self._post_event(machine.PullStarted(at_ns=time.time_ns()))
        self._inputs.begin()
        pulled: dict[str, Image] = {}
        for container in self.definition.containers:
            name, reference = container.name, container.image
            try:
                store = open_store(self.settings)
                if reference not in pulled:
                    with self.timeline.phase(f"pull {reference}"):
                        pulled[reference] = store.pull(
                            reference,
                            policy=self._pull_policy,
                            platform=launch.platform_of(self.definition),
                            on_progress=self._on_progress,
                            cancelled=self._pull_cancelled,
                            credentials=self._inputs.registry_credentials(container),
                        )
                image = pulled[reference]
                with self.timeline.phase(f"mount image of {name}"):
                    path = store.ensure_mounted(
                        image, Path(self.settings.run_root), self.run.task_id
                    )
            except (FargateliteError, OSError) as error:
                self._pull_failed(name, self._inputs.failure or error)
                return
            held = self._containers[name]
            held.image, held.image_path = image, path
            self._post_event(
                machine.ContainerPulled(at_ns=time.time_ns(), name=name, digest=image.digest)
            )
        try:
            self._inputs.wait()
            if self._logs is not None:
                with self.timeline.phase("log drivers"):
                    self._logs.open(self._inputs.secret_options)
        except FargateliteError as error:
            self._pull_failed(name, self._inputs.failure or error)
            return
        self._post_event(machine.PullFinished(at_ns=time.time_ns()))

    def _pull_failed(self, name: str, error: Exception) -> None:
        reason, now = reason_of(error, "CannotPullContainerError"), time.time_ns()
        if isinstance(error, AwsFailed | LogDriverFailed):
            self._post_event(machine.InputsFailed(at_ns=now, reason=reason))
        else:
            self._post_event(machine.PullFailed(at_ns=now, name=name, reason=reason))

    def _on_progress(self, progress: PullProgress) -> None:
        if self._on_event is not None:
            event = PullEvent(
                task_id=str(self.run.task_id),
                at_ns=time.time_ns(),
                reference=progress.reference,
                layer=progress.layer,
                done_bytes=progress.done_bytes,
                total_bytes=progress.total_bytes,
                phase=progress.phase,
            )
            callback = self._on_event
            self.supervisor.call_back(lambda: callback(event))

    # ---- containers ----

    def _start_container(self, name: str) -> None:
        held = self._containers[name]
        launched = self._launched
        assert launched is not None
        assert held.image is not None
        assert held.image_path is not None
        try:
            with self.timeline.phase(f"prepare {name}"):
                container = next(c for c in self.definition.containers if c.name == name)
                cgroup = launch.create_container(self.settings, self.run, launched.slot, container)
                write_container_files(self.run, self.definition, container, launched.slot)
                inputs = self._inputs.of_container(container)
                volumes = (
                    *self._prepare_volumes(container, held.image, launched.slot),
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
                    trace=self._trace,
                    volumes=volumes,
                    pid_holder=launch.PID_HOLDER if self.definition.pid_mode == "task" else None,
                    launch_type=self.facts.launch_type,
                )
                if self._logs is not None:
                    held.spec = self._logs.wire(name, held.spec)
                    self._logs.start(name, launched.shim, held.number)
                held.plan = compile_container(held.spec)
                data = encode_plan(held.plan)
                self.run.write_guest_plan(name, encode_plan(compile_guest(held.spec)))
                self._sampler.add_container(self.run.task_id, name, cgroup)
            launched.shim.start_process(held.number, data)
        except (FargateliteError, OSError, ValueError) as error:
            reason = reason_of(error, "CannotStartContainerError")
            self._post_event(
                machine.ContainerStartFailed(
                    at_ns=time.time_ns(), name=name, reason=reason, exit_code=None
                )
            )

    def _write_secret_files(
        self, container: ContainerDefinition, secrets: Mapping[str, str], slot: Slot
    ) -> tuple[VolumeMount, ...]:
        refresh_s = self.settings.beyond_fargate.secret_files_refresh_s
        if refresh_s is None or not secrets:
            return ()
        with self._volume_lock:
            if self._secret_files is None:
                self._secret_files = SecretFiles(self.settings, self.run.task_id)
                self._secret_files.create()
                self.supervisor.post(lambda: self._refresh_secrets_after(refresh_s), self)
            return (self._secret_files.write(container.name, secrets, slot.uid_base),)

    def _refresh_secrets_after(self, seconds: int) -> None:
        key = "secret files"

        def refresh() -> None:
            self._timers.pop(key, None)
            if self.state.desired_status == "RUNNING":
                self._submit(lambda: self._refresh_secrets(seconds))

        at_ns = time.time_ns() + seconds * 1_000_000_000
        self._timers[key] = self.supervisor.set_timer(at_ns, refresh, self)

    def _refresh_secrets(self, seconds: int) -> None:
        files, launched = self._secret_files, self._launched
        assert files is not None
        assert launched is not None
        try:
            for container, values in self._inputs.fetch_again().items():
                with self._volume_lock:
                    if values:
                        files.write(container, values, launched.slot.uid_base)
        except (FargateliteError, OSError) as error:
            logger.warning("task %s: secret files stay as they are: %s", self.run.task_id, error)
        self.supervisor.post(lambda: self._refresh_secrets_after(seconds), self)

    def _prepare_volumes(
        self, container: ContainerDefinition, image: Image, slot: Slot
    ) -> tuple[VolumeMount, ...]:
        from fargatelite.runtime.images import open_store

        images = {name: held.image for name, held in self._containers.items()}
        mounts = list_mounts(self.definition, container, images)
        if not mounts:
            return ()
        with self._volume_lock:
            return prepare_volumes(
                self.settings, self.run.task_id, slot, mounts, image,
                open_store(self.settings).unpack_directory,
            )  # fmt: skip

    @property
    def _has_shared_pids(self) -> bool:
        return self.definition.pid_mode is not None

    def _restart_container(self, name: str) -> None:
        """The same group and writable layer; processes that outlived the first one go before."""
        held = self._containers[name]
        assert self._launched is not None
        try:
            self._driver.kill(names.cgroup_path(self.run.task_id, name))
            launch.reset_overlay(self.settings, self.run, name)
            self._launched.shim.start_process(held.number, encode_plan(held.plan))
        except (FargateliteError, OSError, ValueError) as error:
            self._post_event(
                machine.ContainerStartFailed(
                    at_ns=time.time_ns(),
                    name=name,
                    reason=reason_of(error, "CannotStartContainerError"),
                    exit_code=None,
                )
            )

    def _by_number(self, number: int) -> tuple[str, bool]:
        is_check = number >= HEALTH_CHECK_NUMBER
        wanted = number - HEALTH_CHECK_NUMBER if is_check else number
        name = next(name for name, held in self._containers.items() if held.number == wanted)
        return name, is_check

    def _on_shim(self) -> None:
        assert self._launched is not None
        event = self._launched.shim.receive(0)
        now = time.time_ns()
        match event:
            case None:
                self._shim_gone(now)
            case (
                ProcessStarted(number=number)
                | ProcessFailed(number=number)
                | ProcessExited(number=number)
            ) if number >= GUEST_NUMBER:
                pass  # somebody looks in; its own process follows it
            case ProcessExited(number=launch.PID_HOLDER):
                logger.error("task %s: its pid namespace is gone", self.run.task_id)
            case ProcessStarted(number=number, pid=pid, setup_ns=setup_ns):
                name, is_check = self._by_number(number)
                if not is_check:
                    self._started(name, setup_ns)
                    self._feed(machine.ContainerStarted(at_ns=now, name=name, pid=pid))
            case ProcessFailed(number=number, failure=failure):
                name, is_check = self._by_number(number)
                self._process_failed(name, is_check, failure, now)
            case ProcessExited(number=number) if number >= HEALTH_CHECK_NUMBER:
                name, _ = self._by_number(number)
                self._health_checked(name, event.exit_code, event.output, now)
            case ProcessExited(number=number, exit_code=exit_code):
                name, _ = self._by_number(number)
                self._exited(name, exit_code, event.stopped_at_ns)
            case Refused(failure=failure):
                # A signal to a process that has just ended: its exit is on the way.
                logger.debug("task %s: %s %s", self.run.task_id, failure.call, failure.path)

    def _started(self, name: str, setup_ns: int) -> None:
        now_us = self.timeline.now_us()
        self.timeline.add(f"start {name}", now_us - setup_ns // 1000, setup_ns // 1000)
        self._read_trace(name)

    def _read_trace(self, name: str) -> None:
        held = self._containers[name]
        if self._trace and held.spec is not None and held.spec.trace_path is not None:
            self.op_traces[name] = read_op_trace(self.run.path / held.spec.trace_path, held.plan)

    def _process_failed(self, name: str, is_check: bool, failure: Failure, now: int) -> None:
        held = self._containers[name]
        if is_check:
            # Docker reports a check that cannot be started as a failed one.
            output = describe_failure(failure, (), "health check").encode()
            self._health_checked(name, start_failure_exit_code(failure, ()) or 126, output, now)
            return
        self._read_trace(name)
        text = describe_failure(failure, held.plan, f"container {name}")
        self._feed(
            machine.ContainerStartFailed(
                at_ns=now,
                name=name,
                reason=f"CannotStartContainerError: {text}",
                exit_code=start_failure_exit_code(failure, held.plan),
            )
        )

    def _exited(self, name: str, exit_code: int, stopped_at_ns: int) -> None:
        if not will_restart(self.state, name, exit_code, stopped_at_ns):
            try:
                self._sampler.remove_container(self.run.task_id, name)  # a last sample, at its end
            except OSError as error:
                logger.error("task %s: ledger: %s", self.run.task_id, error)
        if self._has_shared_pids:
            # No pid namespace ends with it: what it left behind is ended by its group.
            self._submit(lambda: self._driver.kill(names.cgroup_path(self.run.task_id, name)))
        oom = exit_code == 128 + signal.SIGKILL and self._was_oom_killed(name)
        self._feed(
            machine.ContainerExited(at_ns=stopped_at_ns, name=name, exit_code=exit_code, oom=oom)
        )

    def _was_oom_killed(self, name: str) -> bool:
        path = names.cgroup_path(self.run.task_id, name)
        try:
            # The task's own limit kills too; its group counts that on v1.
            return (
                self._driver.oom_kills(path) > 0
                or self._driver.oom_kills(names.cgroup_path(self.run.task_id)) > 0
            )
        except FargateliteError as error:
            logger.warning("task %s: %s", self.run.task_id, error)
            return False

    def _shim_gone(self, now: int) -> None:
        """The shim was killed: so were its containers."""
        self._unwatch_shim()
        for container in self.state.containers:
            if container.last_status == "RUNNING":
                self._feed(
                    machine.ContainerExited(
                        at_ns=now, name=container.name, exit_code=128 + signal.SIGKILL, oom=False
                    )
                )

    def _logs_dropped(self, event: LogsDroppedEvent) -> None:
        def tell() -> None:
            self._dropped[event.container] = event
            self._emit(event)

        self.supervisor.post(tell, self)

    # ---- health checks ----

    def _run_health_check(self, name: str) -> None:
        held = self._containers[name]
        container = next(c for c in self.definition.containers if c.name == name)
        check = container.health_check
        assert check is not None
        if held.spec is None or self._launched is None:
            return
        plan = compile_health_check(held.spec, check.command)
        number = HEALTH_CHECK_NUMBER + held.number
        held.is_check_timed_out = False

        def time_out() -> None:
            held.is_check_timed_out = True
            if self._launched is not None:
                self._launched.shim.signal_process(number, signal.SIGKILL)

        self._launched.shim.start_process(number, encode_plan(plan))
        held.cancel_check_timeout = self.supervisor.set_timer(
            time.time_ns() + check.timeout_s * 1_000_000_000, time_out, self
        )

    def _health_checked(self, name: str, exit_code: int, output: bytes, now: int) -> None:
        held = self._containers[name]
        if held.cancel_check_timeout is not None:
            held.cancel_check_timeout()
            held.cancel_check_timeout = None
        self._feed(
            machine.HealthResult(
                at_ns=now,
                name=name,
                exit_code=exit_code,
                output=output.decode("utf-8", "replace"),
                timed_out=held.is_check_timed_out,
            )
        )

    # ---- the end ----

    def _deprovision(self) -> None:
        from fargatelite.runtime.images import open_store

        self._close_endpoint()
        try:
            self._sampler.remove(self.run.task_id)  # takes the last sample
        except OSError as error:
            logger.error("task %s: ledger: %s", self.run.task_id, error)

        if self._logs is not None:
            with self.timeline.phase("logs"):
                self._logs.drain()

        def release() -> None:
            if any(held.image is not None for held in self._containers.values()):
                open_store(self.settings).release(Path(self.settings.run_root), self.run.task_id)

        self._leftovers = launch.remove_task(
            self.settings, self.run, self._driver, self._launched, release, self.timeline
        )
        for failure in self._leftovers:
            logger.error("task %s: left behind: %s", self.run.task_id, failure)
        self._post_event(machine.DeprovisionFinished(at_ns=time.time_ns()))

    def _finish(self) -> None:
        for cancel in self._timers.values():
            cancel()
        self._timers.clear()
        if self._requests_watch is not None:
            self.supervisor.unwatch_directory(self._requests_watch)
        record.write_stopped(self.settings, self.record())
        if self._leftovers:
            self.run.unlock()  # gc finds the directory and tries again
        else:
            self.run.remove()
        self.supervisor.discard(self)
        # After the callbacks that are still queued.
        self.supervisor.call_back(self._tell_finished)

    def fault(self, error: Exception) -> None:
        """A fault of ours in this task: it ends, everything of it is removed, and whoever waits is
        told. From any thread; the first fault counts."""
        self.supervisor.post(lambda: self._bury(error))

    def _bury(self, error: Exception) -> None:
        if self._is_faulty or self.is_finished:
            return
        self._is_faulty = True
        self._unwatch_shim()
        self._pull_cancelled.set()
        reason = f"InternalError: {type(error).__name__}: {error}"

        def close() -> None:
            self.state = close_state(
                self.state, self.run, time.time_ns(), stop_code="TaskFailedToStart"
                if self.state.started_at_ns is None else "EssentialContainerExited",
                reason=reason,
            )  # fmt: skip
            self._finish()

        def remove() -> None:
            # What is being made is found only when it is there.
            with self._working:
                self._working.wait_for(lambda: not self._work_count, _WORK_DEADLINE_S)
            try:
                self._deprovision()
            finally:
                self.supervisor.post(close)

        self.supervisor.pool.submit(remove)

    def _tell_finished(self) -> None:
        with self.changed:
            self.is_finished = True
            self.changed.notify_all()
        if self._on_finished is not None:
            self._on_finished()
