"""One supervised task: feeds events to the state machine and carries out what it answers.

All state changes happen on the supervisor's thread. Blocking work goes to its pool; what comes back
is an event again.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fargatelite import names
from fargatelite.errors import FargateliteError
from fargatelite.rundir import RunDirectory
from fargatelite.runtime import launch, record
from fargatelite.runtime import task as machine
from fargatelite.runtime.adopt import Found, plan_adoption
from fargatelite.runtime.close import close_state
from fargatelite.runtime.dependencies import ContainerStep
from fargatelite.runtime.describe import describe_state_change
from fargatelite.runtime.events import (
    ContainerEvent,
    Event,
    LogsDroppedEvent,
    PullEvent,
    StateChange,
    TaskEvent,
    WaitingEvent,
    append_events,
)
from fargatelite.runtime.guest import GUEST_NUMBER
from fargatelite.runtime.prepared import get_pool
from fargatelite.runtime.reasons import (
    describe_failure,
    reason_of,
    start_failure_exit_code,
    stop_signal_of,
)
from fargatelite.runtime.record import TaskRecord
from fargatelite.runtime.supervise import Supervisor
from fargatelite.runtime.trace import Timeline, read_op_trace
from fargatelite.runtime.transitions import step, will_restart
from fargatelite.runtime.upkeep import collect_if_due, is_due
from fargatelite.runtime.usage import add_ended_io
from fargatelite.runtime.waiting import get_line
from fargatelite.runtime.work import SHIM_GONE, TaskWork
from fargatelite.sandbox.compile import compile_guest_check, compile_health_check
from fargatelite.sandbox.plan import Plan, decode_plan, encode_plan
from fargatelite.shim import (
    Failure,
    ProcessExited,
    ProcessFailed,
    ProcessStarted,
    Refused,
)
from fargatelite.taskdef.fields import TaskDefinition

if TYPE_CHECKING:
    from fargatelite.images.image import PullProgress
    from fargatelite.meter.sampler import Sampler
    from fargatelite.runtime.capacity import Ticket
    from fargatelite.runtime.request import TaskRequest

__all__ = ["SupervisedTask"]

logger = logging.getLogger(__name__)

_WORK_DEADLINE_S = 60.0  # no step of a launch blocks longer; a pull is cancelled

_TOLD_WAIT_US = 1000  # what `run` shows among the phases of a launch

HEALTH_CHECK_NUMBER = 1000  # process numbers in the shim: containers from 0, checks from here


class SupervisedTask:
    """A task of this process. Methods without "on the loop" may be called from any thread."""

    def __init__(
        self,
        supervisor: Supervisor,
        run: RunDirectory,
        definition: TaskDefinition,
        state: machine.TaskState,
        request: TaskRequest,
        *,
        sampler: Sampler,
        timeline: Timeline,
        on_event: Callable[[Event], None] | None,
        on_finished: Callable[[], None] | None = None,
        sandbox: launch.Launched | None = None,
        ticket: Ticket | None = None,
    ) -> None:
        self.supervisor = supervisor
        self.settings = supervisor.settings
        self.run = run
        self.definition = definition
        self.state = state
        self.facts = request.facts
        self.timeline = timeline
        self.op_traces: dict[str, list[tuple[str, int]]] = {}
        self._request = request
        self._ticket = ticket
        self._line = get_line(supervisor)
        self._entered_us = 0
        self._sampler = sampler
        self._on_event = on_event
        self._on_finished = on_finished
        self._work = TaskWork(
            self.settings, run, definition, self.facts, request, live=self, sampler=sampler,
            timeline=timeline, tell=self._post_event, submit=self._submit,
            on_progress=self._on_progress, on_dropped=self._logs_dropped, sandbox=sandbox,
        )  # fmt: skip
        self._dropped: dict[str, LogsDroppedEvent] = {}
        self._killed: set[str] = set()
        self._is_shim_watched = False
        self._timers: dict[object, Callable[[], None]] = {}
        self._requests_watch: int | None = None
        self._is_faulty = False
        self._orphaned_checks: set[int] = set()
        self._working = threading.Condition()
        self._work_count = 0
        self.changed = threading.Condition()
        self._finished = threading.Event()  # who waits for the end is not woken by each step

    # ---- any thread ----

    @property
    def is_finished(self) -> bool:
        """Whether the task is STOPPED, nothing is left of it, and that has been told."""
        return self._finished.is_set()

    def begin(self) -> None:
        """Starts the task's life."""
        self.supervisor.add(self)
        self.supervisor.post(self._begin_on_loop, self)

    def begin_adopted(self, recorded: TaskRecord) -> None:
        """Goes on with a task whose supervisor is gone; the caller has its lock."""
        self._dropped = {item.container: item for item in recorded.logs_dropped}
        self.supervisor.add(self)
        self.supervisor.post(lambda: self._submit(lambda: self._reattach(recorded)), self)

    def request_stop(self, stop_code: str, reason: str) -> None:
        """Asks for a stop; a task that is stopping or stopped stays as it is."""
        self._post_event(
            machine.StopRequested(at_ns=time.time_ns(), stop_code=stop_code, reason=reason)
        )
        # A pull does not listen to the loop. After the request: the pull's failure follows from it.
        self._work.pull_cancelled.set()

    def stop_for_exit(self) -> None:
        """Asks for a stop because the supervising process ends."""
        self.request_stop("UserInitiated", "the process that ran the task ended")

    def wait_finished(self, timeout_s: float | None) -> bool:
        """Waits until the task is STOPPED and nothing is left of it; whether it came to that."""
        return self._finished.wait(timeout_s)

    def record(self) -> TaskRecord:
        """The task as it is written down."""
        return TaskRecord(
            state=self.state,
            definition=self._request.definition,
            facts=self.facts,
            slot=self._work.launched.slot if self._work.launched is not None else None,
            publish=self._request.publish,
            pull=self._request.pull,
            address=self._request.address,
            groups=self._request.groups,
            trace=self._request.trace,
            seccomp=self._request.seccomp,
            network_mbit=self._request.network_mbit,
            credentials_id=self._work.credentials_id,
            phases=tuple(self.timeline.phases),
            leftovers=tuple(self._work.leftovers),
            logs_dropped=tuple(self._dropped.values()),
        )

    def _post_event(self, event: machine.Event) -> None:
        self.supervisor.post(lambda: self._feed(event), self)

    def _submit(self, work: Callable[[], None]) -> None:
        with self._working:
            self._work_count += 1

        def count_down() -> None:
            with self._working:
                self._work_count -= 1
                self._working.notify_all()

        def count_and_work() -> None:
            try:
                work()
            finally:
                count_down()

        try:
            self.supervisor.pool.submit(count_and_work, self)
        except RuntimeError:  # no thread to be had: the task ends, and waits for no work
            count_down()
            raise

    # ---- on the loop ----

    def _begin_on_loop(self) -> None:
        self._requests_watch = self.supervisor.watch_directory(
            self.run.requests, self._look_for_desired, self
        )
        self._feed(machine.Created(at_ns=time.time_ns()))
        self._limit_run_time()
        self._refresh_secrets_later()
        self._look_for_desired()

    def _reattach(self, recorded: TaskRecord) -> None:
        found = self._work.reattach(recorded)
        self.supervisor.post(lambda: self._adopted(found), self)

    def _adopted(self, found: Found) -> None:
        self._requests_watch = self.supervisor.watch_directory(
            self.run.requests, self._look_for_desired, self
        )
        if self._work.launched is not None:
            self.supervisor.watch(self._work.launched.shim, self._on_shim, self)
            self._is_shim_watched = True
            for number in found.live:
                if HEALTH_CHECK_NUMBER <= number < GUEST_NUMBER:
                    # Nobody knows when it began. What it says when it is killed says nothing.
                    self._orphaned_checks.add(number)
                    self._signal_number(number, signal.SIGKILL)
        adoption = plan_adoption(self.state, found, time.time_ns())
        for event in adoption.events:
            self._feed(event)
        for action in adoption.actions:
            self._carry_out(action)
        if not self.is_finished:
            self._limit_run_time()
            self._refresh_secrets_later()
            self._look_for_desired()

    def _limit_run_time(self) -> None:
        limit_s = self.settings.beyond_fargate.max_run_time_s
        if limit_s is not None:
            reason = f"Task ran for {limit_s} s, this host's beyond_fargate.max_run_time_s"
            self._timers["max_run_time"] = self.supervisor.set_timer(
                self.state.created_at_ns + limit_s * 1_000_000_000,
                lambda: self.request_stop("UserInitiated", reason),
                self,
            )

    def _look_for_desired(self) -> None:
        desired = self.run.read_desired()
        if desired is not None:
            self._work.pull_cancelled.set()
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
        # Work goes to other threads, so what is told meanwhile costs it nothing; the end is told
        # before it is one.
        for action in actions:
            if not isinstance(action, machine.Finished):
                self._carry_out(action)
        self._publish_changes(before, self.state, event.at_ns)
        if any(isinstance(action, machine.Finished) for action in actions):
            self._finish()
        with self.changed:
            self.changed.notify_all()
        self._leave_line(before)

    def _leave_line(self, before: machine.TaskState) -> None:
        """Others begin once this launch is prepared; it does not when it is stopped before."""
        steps = ("provision", "pull")
        is_prepared = before.pending in steps and self.state.pending not in steps
        is_stopped = before.desired_status != self.state.desired_status
        if (is_prepared or is_stopped) and self._line.leave(self):
            self.not_admitted("the task was stopped before its turn")

    def _publish_changes(
        self, before: machine.TaskState, after: machine.TaskState, at_ns: int
    ) -> None:
        task_id = str(self.run.task_id)
        events: list[Event] = []
        for old, new in zip(before.containers, after.containers, strict=True):
            if (old.last_status, old.health_status) != (new.last_status, new.health_status):
                events.append(
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
            events.append(
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
            events.append(StateChange(task_id=task_id, at_ns=at_ns, event=change))
        self._emit(*events)

    def _emit(self, *events: Event) -> None:
        if events:
            append_events(self.settings.records, self.run.task_id, events)
            if self._on_event is not None:
                self.supervisor.call_back(*(partial(self._on_event, event) for event in events))

    def _carry_out(self, action: machine.Action) -> None:
        match action:
            case machine.Provision():
                self._entered_us = self.timeline.now_us()
                self._line.enter(self, self._ticket, self._request.wait_for_capacity_s)
            case machine.PullImages():
                self._submit(self._work.pull)
            case machine.StartContainer(name=name):
                self._submit(lambda: self._work.start_container(name))
            case machine.RestartContainer(name=name):
                self._submit(lambda: self._work.restart_container(name))
            case machine.SignalContainer(name=name):
                self._ask_to_stop(name)
            case machine.KillContainer(name=name):
                self._signal(name, signal.SIGKILL)
                self._killed.add(name)
                self._hurry_the_dying()
            case machine.RunHealthCheck(name=name):
                self._run_health_check(name)
            case machine.SetTimer(key=key, at_ns=at_ns):
                self._timers[key] = self.supervisor.set_timer(at_ns, lambda: self._fire(key), self)
            case machine.CancelTimer(key=key):
                cancel = self._timers.pop(key, None)
                if cancel is not None:
                    cancel()
            case machine.Deprovision():
                self._work.pull_cancelled.set()
                self._unwatch_shim()
                self._submit(self._work.deprovision)

    def _hurry_the_dying(self) -> None:
        """Once nothing of the task is to live on, no cap holds up its end."""
        for container in self.state.containers:
            if container.last_status == "RUNNING" and container.name not in self._killed:
                return

        def uncap() -> None:
            try:
                self._work.driver.uncap_cpu(names.cgroup_path(self.run.task_id))
            except FargateliteError as error:  # then it takes its time
                logger.warning("task %s: %s", self.run.task_id, error)

        self._submit(uncap)

    def _ask_to_stop(self, name: str) -> None:
        image = self._work.containers[name].image
        number = stop_signal_of(image.config.stop_signal if image else None)
        if self._work.logs is not None and self._work.logs.is_router(name):
            logs = self._work.logs
            self._submit(lambda: logs.drain_into_router(lambda: self._signal(name, number)))
        else:
            self._signal(name, number)

    def _fire(self, key: machine.TimerKey) -> None:
        self._timers.pop(key, None)
        self._feed(machine.TimerFired(at_ns=time.time_ns(), key=key))

    def _signal(self, name: str, number: int) -> None:
        self._signal_number(self._work.containers[name].number, number)

    def _signal_number(self, process: int, number: int) -> None:
        if self._work.launched is not None:
            try:
                self._work.launched.shim.signal_process(process, number)
            except OSError as error:
                # The shim is gone, and with it (PR_SET_PDEATHSIG) its containers: _on_shim tells.
                logger.warning("task %s: process %d: %s", self.run.task_id, process, error)

    # ---- provisioning ----

    def begin_preparing(self) -> None:
        """It is the task's turn (runtime.waiting)."""
        waited_us = self.timeline.now_us() - self._entered_us
        if waited_us >= _TOLD_WAIT_US:
            self.timeline.add("wait for its turn", self._entered_us, waited_us)
        self._submit(self._provision)

    def waits(self, reason: str, ahead: int) -> None:
        """It waits for capacity."""
        task_id = str(self.run.task_id)
        self._emit(WaitingEvent(task_id=task_id, at_ns=time.time_ns(), reason=reason, ahead=ahead))

    def not_admitted(self, reason: str) -> None:
        """It is not to begin, and nothing has been made of it."""
        self._feed(machine.ProvisionFailed(at_ns=time.time_ns(), reason=reason))

    def _provision(self) -> None:
        try:
            self._work.provision()
        except (FargateliteError, OSError) as error:
            reason = reason_of(error, "ResourceInitializationError")
            self._post_event(machine.ProvisionFailed(at_ns=time.time_ns(), reason=reason))
            return
        self.supervisor.post(self._provisioned, self)
        self._work.make_ready()

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

    def _provisioned(self) -> None:
        launched = self._work.launched
        assert launched is not None
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
        if self._is_shim_watched and self._work.launched is not None:
            self.supervisor.unwatch(self._work.launched.shim)
            self._is_shim_watched = False

    def _refresh_secrets_later(self) -> None:
        seconds = self.settings.beyond_fargate.secret_files_refresh_s
        if seconds is None:
            return
        key = "secret files"

        def refresh() -> None:
            self._timers.pop(key, None)
            if self.state.desired_status == "RUNNING":
                self._submit(self._refresh_secrets)

        at_ns = time.time_ns() + seconds * 1_000_000_000
        self._timers[key] = self.supervisor.set_timer(at_ns, refresh, self)

    def _refresh_secrets(self) -> None:
        self._work.refresh_secret_files()
        self.supervisor.post(self._refresh_secrets_later, self)

    # ---- the shim's events ----

    @property
    def _has_shared_pids(self) -> bool:
        return self.definition.pid_mode is not None

    def _by_number(self, number: int) -> tuple[str, bool]:
        is_check = number >= HEALTH_CHECK_NUMBER
        wanted = number - HEALTH_CHECK_NUMBER if is_check else number
        name = next(name for name, held in self._work.containers.items() if held.number == wanted)
        return name, is_check

    def _on_shim(self) -> None:
        assert self._work.launched is not None
        event = self._work.launched.shim.receive(0)
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
            case ProcessExited(number=number) if number in self._orphaned_checks:
                self._orphaned_checks.discard(number)
            case ProcessExited(number=launch.PID_HOLDER):
                logger.error("task %s: its pid namespace is gone", self.run.task_id)
            case ProcessStarted(number=number, pid=pid, setup_ns=setup_ns):
                name, is_check = self._by_number(number)
                if not is_check:
                    self._started(name, setup_ns)
                    self._feed(machine.ContainerStarted(at_ns=now, name=name, pid=pid))
                    self._refill()
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

    def _refill(self) -> None:
        """Sandboxes for tasks to come, when this one has what it needs."""
        if self.settings.prepared_sandboxes:
            get_pool(self.supervisor).fill()

    def _started(self, name: str, setup_ns: int) -> None:
        now_us = self.timeline.now_us()
        self.timeline.add(f"start {name}", now_us - setup_ns // 1000, setup_ns // 1000)
        self._read_trace(name)

    def _read_trace(self, name: str) -> None:
        held = self._work.containers[name]
        if self._request.trace and held.spec is not None and held.spec.trace_path is not None:
            self.op_traces[name] = read_op_trace(self.run.path / held.spec.trace_path, held.plan)

    def _process_failed(self, name: str, is_check: bool, failure: Failure, now: int) -> None:
        held = self._work.containers[name]
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
        add_ended_io(self._sampler, self.run, name, self._work.containers[name].number)
        if not will_restart(self.state, name, exit_code, stopped_at_ns):
            try:
                self._sampler.remove_container(self.run.task_id, name)  # a last sample, at its end
            except OSError as error:
                logger.error("task %s: ledger: %s", self.run.task_id, error)
        if self._has_shared_pids:
            # No pid namespace ends with it: what it left behind is ended by its group.
            self._submit(lambda: self._work.driver.kill(names.cgroup_path(self.run.task_id, name)))
        oom = exit_code == 128 + signal.SIGKILL and self._was_oom_killed(name)
        self._feed(
            machine.ContainerExited(at_ns=stopped_at_ns, name=name, exit_code=exit_code, oom=oom)
        )

    def _was_oom_killed(self, name: str) -> bool:
        path = names.cgroup_path(self.run.task_id, name)
        try:
            # The task's own limit kills too; its group counts that on v1.
            return (
                self._work.driver.oom_kills(path) > 0
                or self._work.driver.oom_kills(names.cgroup_path(self.run.task_id)) > 0
            )
        except FargateliteError as error:
            logger.warning("task %s: %s", self.run.task_id, error)
            return False

    def _shim_gone(self, now: int) -> None:
        """The shim was killed: so were its containers, and what it was asked to start never is."""
        self._unwatch_shim()
        for container in self.state.containers:
            name = container.name
            if container.step == ContainerStep.STARTING or container.is_restarting:
                reason = f"CannotStartContainerError: {SHIM_GONE}"
                self._feed(
                    machine.ContainerStartFailed(
                        at_ns=now, name=name, reason=reason, exit_code=None
                    )
                )
            elif container.last_status == "RUNNING":
                self._feed(
                    machine.ContainerExited(
                        at_ns=now, name=name, exit_code=128 + signal.SIGKILL, oom=False
                    )
                )

    def _logs_dropped(self, event: LogsDroppedEvent) -> None:
        def tell() -> None:
            self._dropped[event.container] = event
            self._emit(event)

        self.supervisor.post(tell, self)

    # ---- health checks ----

    def _run_health_check(self, name: str) -> None:
        held = self._work.containers[name]
        container = self._work.definition_of(name)
        check = container.health_check
        assert check is not None
        if self._work.launched is None:
            return
        plan = self._plan_health_check(name, check.command)
        number = HEALTH_CHECK_NUMBER + held.number
        held.is_check_timed_out = False

        def time_out() -> None:
            held.is_check_timed_out = True
            self._signal_number(number, signal.SIGKILL)

        try:
            self._work.launched.shim.start_process(number, encode_plan(plan))
        except OSError as error:
            # The shim is gone, and with it its containers: _on_shim tells.
            logger.warning("task %s: no health check of %s: %s", self.run.task_id, name, error)
            return
        held.cancel_check_timeout = self.supervisor.set_timer(
            time.time_ns() + check.timeout_s * 1_000_000_000, time_out, self
        )

    def _plan_health_check(self, name: str, command: tuple[str, ...]) -> Plan:
        """By the container's specification, or, where another supervisor had that, by the plan that
        leads into the running container."""
        held = self._work.containers[name]
        if held.spec is not None:
            return compile_health_check(held.spec, command)
        template = self.run.read_guest_plan(name)
        assert template is not None, "it is written before a container starts"
        return compile_guest_check(decode_plan(template), held.number, command)

    def _health_checked(self, name: str, exit_code: int, output: bytes, now: int) -> None:
        held = self._work.containers[name]
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

    def _finish(self) -> None:
        for cancel in self._timers.values():
            cancel()
        self._timers.clear()
        self._line.leave(self)
        if self._requests_watch is not None:
            self.supervisor.unwatch_directory(self._requests_watch)
            self._requests_watch = None
        try:
            record.write_stopped(self.settings, self.record())
            if not self._work.leftovers:
                self.run.remove()
        except OSError as error:
            # Whoever waits is told all the same: the state in the run directory says STOPPED.
            logger.error("task %s: left behind: record: %s", self.run.task_id, error)
        self.run.unlock()  # where the directory is still there, gc finds it and tries again
        self.supervisor.discard(self)
        self._refill()
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
        self._work.pull_cancelled.set()
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
                self._work.deprovision()
            finally:
                self.supervisor.post(close)

        self.supervisor.pool.submit(remove)

    def _tell_finished(self) -> None:
        self._finished.set()
        with self.changed:
            self.changed.notify_all()
        if self._on_finished is not None:
            self._on_finished()
        if is_due(self.settings):
            self.supervisor.pool.submit(lambda: collect_if_due(self.settings))
