"""The life of a task as a pure function: `step(state, event) -> (state, actions)`.

No clock, no kernel, no files: every event carries its time, every effect is an action that the
executor (execute.py) carries out and answers with another event. So a life can be played back,
tested without root, and taken over by another process from its recorded state.

    PROVISIONING  slot, groups, shim, network        -> PENDING
    PENDING       images                             -> ACTIVATING
    ACTIVATING    containers start, in order          -> RUNNING
    RUNNING       until something ends it             -> STOPPING
    STOPPING      stop signals in reverse order       -> DEPROVISIONING
    DEPROVISIONING everything is removed              -> STOPPED

Any state may jump to the stop path. Rules: contract 3.1 to 3.7.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import replace

from fargatelite.runtime.dependencies import (
    Condition,
    ContainerStep,
    Dependency,
    Verdict,
    dependents_of,
    judge,
)

if TYPE_CHECKING:
    from fargatelite.taskdef.fields import TaskDefinition

__all__ = [
    "TASK_STATUS_ORDER",
    "Action",
    "ContainerState",
    "Event",
    "HealthPolicy",
    "HealthStatus",
    "TaskState",
    "TaskStatus",
    "TimerKey",
    "new_state",
    "step",
]

SECOND_NS = 1_000_000_000
UNMET_DEPENDENCY_EXIT_CODE = 143  # contract 3.3: never started because a dependency cannot be met
OOM_REASON = "OutOfMemoryError: Container killed due to memory usage"
ESSENTIAL_REASON = "Essential container in task exited"
FAILED_TO_START_REASON = "Task failed to start"


class TaskStatus(StrEnum):
    """`lastStatus` (contract 3.1), in the order of a life."""

    PROVISIONING = "PROVISIONING"
    PENDING = "PENDING"
    ACTIVATING = "ACTIVATING"
    RUNNING = "RUNNING"
    DEACTIVATING = "DEACTIVATING"
    STOPPING = "STOPPING"
    DEPROVISIONING = "DEPROVISIONING"
    STOPPED = "STOPPED"


TASK_STATUS_ORDER = tuple(TaskStatus)


class HealthStatus(StrEnum):
    """Contract 3.7."""

    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    UNKNOWN = "UNKNOWN"


class HealthPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a health check; the time-out is the executor's to keep."""

    interval_s: int
    retries: int
    start_period_s: int


class TimerKey(NamedTuple):
    """Names a timer: `kind` is `health`, `start` (startTimeout) or `kill` (stopTimeout)."""

    kind: str
    container: str


class ContainerState(msgspec.Struct, frozen=True, kw_only=True):
    """One container: what of its definition matters here, and what is known of it."""

    name: str
    essential: bool
    depends_on: tuple[Dependency, ...] = ()
    start_timeout_s: int | None = None
    stop_timeout_s: int = 30
    health_policy: HealthPolicy | None = None

    step: ContainerStep = ContainerStep.NONE
    is_signalled: bool = False
    is_start_timed_out: bool = False
    image_digest: str | None = None
    pid: int | None = None
    started_at_ns: int | None = None
    finished_at_ns: int | None = None
    exit_code: int | None = None
    reason: str | None = None

    health_status: HealthStatus = HealthStatus.UNKNOWN
    health_since_ns: int | None = None
    health_failures: int = 0
    health_exit_code: int | None = None
    health_output: str | None = None
    was_healthy: bool = False

    @property
    def last_status(self) -> str:
        """As the API reports it: PENDING, RUNNING, STOPPED."""
        if self.step == ContainerStep.STOPPED:
            return "STOPPED"
        return "RUNNING" if self.step == ContainerStep.RUNNING else "PENDING"

    @property
    def is_alive(self) -> bool:
        """Whether it has, or is about to have, a process."""
        return self.step in (ContainerStep.STARTING, ContainerStep.RUNNING)


class TaskState(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a task. Times are wall-clock nanoseconds."""

    task_id: str
    containers: tuple[ContainerState, ...]
    last_status: TaskStatus = TaskStatus.PROVISIONING
    desired_status: str = "RUNNING"
    version: int = 1
    pending: str | None = None
    """The blocking step that is on its way (`provision`, `pull`, `deprovision`): the task cannot be
    taken apart under it."""
    stop_code: str | None = None
    stopped_reason: str | None = None
    created_at_ns: int
    pull_started_at_ns: int | None = None
    pull_stopped_at_ns: int | None = None
    started_at_ns: int | None = None
    stopping_at_ns: int | None = None
    execution_stopped_at_ns: int | None = None
    stopped_at_ns: int | None = None

    def container(self, name: str) -> ContainerState:
        """The container of that name; KeyError for an unknown one."""
        for container in self.containers:
            if container.name == name:
                return container
        raise KeyError(name)

    @property
    def health_status(self) -> HealthStatus:
        """The worst of the essential containers that have a check (contract 3.7)."""
        known = [
            container.health_status
            for container in self.containers
            if container.essential and container.health_policy is not None
        ]
        if HealthStatus.UNHEALTHY in known:
            return HealthStatus.UNHEALTHY
        if not known or HealthStatus.UNKNOWN in known:
            return HealthStatus.UNKNOWN
        return HealthStatus.HEALTHY


# ---- events ----


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, at a wall-clock time (ns)."""

    at_ns: int


class Created(Event, frozen=True, kw_only=True):
    """The task was asked for."""


class ProvisionSucceeded(Event, frozen=True, kw_only=True):
    """Slot, groups, shim and network are there."""


class ProvisionFailed(Event, frozen=True, kw_only=True):
    """`reason` with its ECS prefix."""

    reason: str


class PullStarted(Event, frozen=True, kw_only=True):
    """The first byte of an image is asked for: the bill begins (contract 7.1)."""


class ContainerPulled(Event, frozen=True, kw_only=True):
    """The image of a container is there."""

    name: str
    digest: str


class PullFailed(Event, frozen=True, kw_only=True):
    """`reason` with its ECS prefix; no further image is pulled."""

    name: str
    reason: str


class PullFinished(Event, frozen=True, kw_only=True):
    """All images are there."""


class ContainerStarted(Event, frozen=True, kw_only=True):
    """The container's program runs."""

    name: str
    pid: int


class ContainerStartFailed(Event, frozen=True, kw_only=True):
    """It never ran. `exit_code` 126 or 127 when its program was to blame."""

    name: str
    reason: str
    exit_code: int | None


class ContainerExited(Event, frozen=True, kw_only=True):
    """Its first process ended; `oom`: the kernel killed for memory."""

    name: str
    exit_code: int
    oom: bool


class HealthResult(Event, frozen=True, kw_only=True):
    """A health check ended, or was ended after its time-out."""

    name: str
    exit_code: int
    output: str
    timed_out: bool


class StopRequested(Event, frozen=True, kw_only=True):
    """Somebody wants the task to stop (contract 3.2)."""

    stop_code: str
    reason: str


class TimerFired(Event, frozen=True, kw_only=True):
    """A timer that `SetTimer` set."""

    key: TimerKey


class DeprovisionFinished(Event, frozen=True, kw_only=True):
    """Everything is removed."""


# ---- actions ----


class Action(msgspec.Struct, frozen=True):
    """Something for the executor to do."""


class Provision(Action, frozen=True):
    """Answered by ProvisionSucceeded or ProvisionFailed."""


class PullImages(Action, frozen=True):
    """Answered by PullStarted, ContainerPulled for each, and PullFinished or PullFailed."""


class StartContainer(Action, frozen=True):
    """Answered by ContainerStarted or ContainerStartFailed."""

    name: str


class SignalContainer(Action, frozen=True):
    """The image's stop signal, else SIGTERM."""

    name: str


class KillContainer(Action, frozen=True):
    """SIGKILL."""

    name: str


class RunHealthCheck(Action, frozen=True):
    """Answered by HealthResult."""

    name: str


class SetTimer(Action, frozen=True):
    """Answered by TimerFired at or after `at_ns`."""

    key: TimerKey
    at_ns: int


class CancelTimer(Action, frozen=True):
    """A timer that is not needed; one that is not set is no error."""

    key: TimerKey


class Deprovision(Action, frozen=True):
    """Answered by DeprovisionFinished; nothing of the task lives then."""


class Finished(Action, frozen=True):
    """The task is STOPPED; the last action."""


def new_state(definition: TaskDefinition, task_id: str, created_at_ns: int) -> TaskState:
    """The state of a task before its first event."""
    containers = []
    for container in definition.containers:
        check = container.health_check
        containers.append(
            ContainerState(
                name=container.name,
                essential=container.essential,
                depends_on=tuple(
                    Dependency(container=item.container_name, condition=Condition(item.condition))
                    for item in container.depends_on
                ),
                start_timeout_s=container.start_timeout_s,
                stop_timeout_s=container.stop_timeout_s,
                health_policy=HealthPolicy(
                    interval_s=check.interval_s,
                    retries=check.retries,
                    start_period_s=check.start_period_s or 0,
                )
                if check is not None
                else None,
            )
        )
    return TaskState(task_id=task_id, containers=tuple(containers), created_at_ns=created_at_ns)


class _Step:
    """One step in the making: the new state and the actions so far."""

    def __init__(self, state: TaskState, at_ns: int) -> None:
        self.state = state
        self.at_ns = at_ns
        self.actions: list[Action] = []

    def do(self, action: Action) -> None:
        self.actions.append(action)

    def set(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)

    def set_container(self, name: str, **changes: object) -> None:
        self.set(
            containers=tuple(
                replace(container, **changes) if container.name == name else container
                for container in self.state.containers
            )
        )

    def want_stop(self, stop_code: str, reason: str) -> None:
        """The first reason to stop is the one that is reported."""
        if self.state.desired_status == "STOPPED":
            return
        self.set(
            desired_status="STOPPED",
            stop_code=stop_code,
            stopped_reason=reason,
            stopping_at_ns=self.at_ns,
        )

    # ---- events ----

    def apply(self, event: Event) -> None:
        match event:
            case Created():
                self.set(pending="provision")
                self.do(Provision())
            case ProvisionSucceeded():
                self.set(pending=None)
                if self.state.desired_status == "RUNNING":
                    self.set(pending="pull", last_status=TaskStatus.PENDING)
                    self.do(PullImages())
            case ProvisionFailed(reason=reason):
                self.set(pending=None)
                self.want_stop("TaskFailedToStart", reason)
            case PullStarted():
                self.set(pull_started_at_ns=self.state.pull_started_at_ns or self.at_ns)
            case ContainerPulled(name=name, digest=digest):
                self.set_container(name, image_digest=digest, step=ContainerStep.PULLED)
            case PullFailed(name=name, reason=reason):
                self.set(pending=None, pull_stopped_at_ns=self.at_ns)
                if self.state.desired_status == "RUNNING":  # else the stop broke the pull off
                    self.set_container(name, reason=reason[:1024])
                    self.want_stop("TaskFailedToStart", reason)
            case PullFinished():
                self.set(pending=None, pull_stopped_at_ns=self.at_ns)
                if self.state.desired_status == "RUNNING":
                    self.set(last_status=TaskStatus.ACTIVATING)
            case ContainerStarted(name=name, pid=pid):
                self.started(name, pid)
            case ContainerStartFailed(name=name):
                self.start_failed(name, event.reason, event.exit_code)
            case ContainerExited(name=name):
                self.exited(name, event.exit_code, event.oom)
            case HealthResult(name=name):
                self.health_result(name, event)
            case StopRequested(stop_code=stop_code, reason=reason):
                self.want_stop(stop_code, reason)
            case TimerFired(key=key):
                self.timer_fired(key)
            case DeprovisionFinished():
                self.set(pending=None, last_status=TaskStatus.STOPPED, stopped_at_ns=self.at_ns)
                self.do(Finished())

    def started(self, name: str, pid: int) -> None:
        container = self.state.container(name)
        if container.step >= ContainerStep.RUNNING:
            return
        self.set_container(name, step=ContainerStep.RUNNING, pid=pid, started_at_ns=self.at_ns)
        if container.health_policy is not None:
            self.set_health_timer(name, container.health_policy)
        waits = (Condition.COMPLETE, Condition.SUCCESS, Condition.HEALTHY)
        if container.start_timeout_s is not None and any(
            dependency.container == name and dependency.condition in waits
            for dependent in self.state.containers
            for dependency in dependent.depends_on
        ):
            self.do(
                SetTimer(
                    TimerKey("start", name), self.at_ns + container.start_timeout_s * SECOND_NS
                )
            )

    def start_failed(self, name: str, reason: str, exit_code: int | None) -> None:
        container = self.state.container(name)
        if container.step >= ContainerStep.RUNNING:
            return
        self.set_container(
            name,
            step=ContainerStep.STOPPED,
            finished_at_ns=self.at_ns,
            reason=reason[:1024],
            exit_code=exit_code,
        )
        if container.essential:
            self.want_stop("TaskFailedToStart", FAILED_TO_START_REASON)

    def exited(self, name: str, exit_code: int, oom: bool) -> None:
        container = self.state.container(name)
        if container.step == ContainerStep.STOPPED:
            return
        self.set_container(
            name,
            step=ContainerStep.STOPPED,
            # An exit that overtook its start: it did run.
            started_at_ns=container.started_at_ns or self.at_ns,
            finished_at_ns=max(self.at_ns, container.started_at_ns or 0),
            exit_code=exit_code,
            reason=OOM_REASON if oom else container.reason,
        )
        for kind in ("health", "start", "kill"):
            self.do(CancelTimer(TimerKey(kind, name)))
        if container.essential:
            self.set(execution_stopped_at_ns=self.state.execution_stopped_at_ns or self.at_ns)
            self.want_stop("EssentialContainerExited", ESSENTIAL_REASON)

    def set_health_timer(self, name: str, policy: HealthPolicy) -> None:
        self.do(SetTimer(TimerKey("health", name), self.at_ns + policy.interval_s * SECOND_NS))

    def health_result(self, name: str, event: HealthResult) -> None:
        container = self.state.container(name)
        policy = container.health_policy
        if policy is None or container.step != ContainerStep.RUNNING:
            return
        is_healthy = event.exit_code == 0 and not event.timed_out
        status, failures = container.health_status, container.health_failures
        in_start_period = (
            not container.was_healthy
            and self.at_ns - (container.started_at_ns or 0) < policy.start_period_s * SECOND_NS
        )
        if is_healthy:
            status, failures = HealthStatus.HEALTHY, 0
        elif not in_start_period:
            failures += 1
            if failures >= policy.retries:
                status = HealthStatus.UNHEALTHY
        is_changed = status != container.health_status
        self.set_container(
            name,
            health_status=status,
            health_since_ns=self.at_ns if is_changed else container.health_since_ns,
            health_failures=failures,
            health_exit_code=event.exit_code,
            health_output="Health check exceeded timeout" if event.timed_out else event.output,
            was_healthy=container.was_healthy or is_healthy,
        )
        if not container.is_signalled:
            self.set_health_timer(name, policy)

    def timer_fired(self, key: TimerKey) -> None:
        container = self.state.container(key.container)
        match key.kind:
            case "health" if container.step == ContainerStep.RUNNING and not container.is_signalled:
                self.do(RunHealthCheck(container.name))
            case "start":
                self.set_container(container.name, is_start_timed_out=True)
            case "kill" if container.step == ContainerStep.RUNNING:
                self.do(KillContainer(container.name))

    # ---- what follows ----

    def settle(self) -> None:
        """Everything that the new state allows or demands, until nothing changes."""
        if self.state.last_status in (TaskStatus.DEPROVISIONING, TaskStatus.STOPPED):
            return
        if self.state.desired_status == "RUNNING" and self.state.pending is None:
            self.start_containers()
        if self.state.desired_status == "STOPPED":
            self.stop_containers()

    def start_containers(self) -> None:
        if self.state.last_status == TaskStatus.PROVISIONING:
            return
        for container in self.state.containers:
            if container.step != ContainerStep.PULLED:
                continue
            verdicts = [
                (judge(dependency, self.state.container(dependency.container)), dependency)
                for dependency in container.depends_on
            ]
            impossible = [item for verdict, item in verdicts if verdict == Verdict.IMPOSSIBLE]
            if impossible:
                self.give_up(container, impossible[0])
                return
            if all(verdict == Verdict.MET for verdict, _ in verdicts):
                self.set_container(container.name, step=ContainerStep.STARTING)
                self.do(StartContainer(container.name))
        if (
            self.state.last_status == TaskStatus.ACTIVATING
            and self.state.containers
            and all(container.step >= ContainerStep.RUNNING for container in self.state.containers)
        ):
            self.set(last_status=TaskStatus.RUNNING, started_at_ns=self.at_ns)

    def give_up(self, container: ContainerState, dependency: Dependency) -> None:
        """A dependency that can never be met ends the task (contract 3.3, 3.5)."""
        target = self.state.container(dependency.container)
        why = "timed out" if target.is_start_timed_out else "can never be satisfied"
        self.set_container(
            container.name,
            step=ContainerStep.STOPPED,
            finished_at_ns=self.at_ns,
            exit_code=UNMET_DEPENDENCY_EXIT_CODE,
            reason=(
                f"CannotStartContainerError: dependency on container {dependency.container} "
                f"with condition {dependency.condition} {why}"
            ),
        )
        self.want_stop("TaskFailedToStart", FAILED_TO_START_REASON)

    def stop_containers(self) -> None:
        for container in self.state.containers:
            if container.step < ContainerStep.STARTING:
                self.set_container(
                    container.name, step=ContainerStep.STOPPED, finished_at_ns=self.at_ns
                )
        for container in self.state.containers:
            if container.step != ContainerStep.RUNNING or container.is_signalled:
                continue
            if any(
                dependent.is_alive
                for dependent in dependents_of(container.name, self.state.containers)
            ):
                continue  # reverse order: after all that depend on it (contract 3.5)
            self.set_container(container.name, is_signalled=True)
            self.set(last_status=TaskStatus.STOPPING)
            self.do(CancelTimer(TimerKey("health", container.name)))
            self.do(SignalContainer(container.name))
            self.do(
                SetTimer(
                    TimerKey("kill", container.name),
                    self.at_ns + container.stop_timeout_s * SECOND_NS,
                )
            )
        if self.state.pending is None and not any(
            container.is_alive for container in self.state.containers
        ):
            self.set(pending="deprovision", last_status=TaskStatus.DEPROVISIONING)
            self.do(Deprovision())


def step(state: TaskState, event: Event) -> tuple[TaskState, tuple[Action, ...]]:
    """The state after `event`, and what is to be done.

    A task that is STOPPED stays so, whatever comes late. Times never run backwards: an event that
    is older than the last recorded moment (a clock step) counts as that moment.
    """
    if state.last_status == TaskStatus.STOPPED:
        return state, ()
    moments = (
        state.created_at_ns,
        state.pull_started_at_ns,
        state.pull_stopped_at_ns,
        state.started_at_ns,
        state.stopping_at_ns,
        state.execution_stopped_at_ns,
    )
    latest = max(moment for moment in moments if moment is not None)
    made = _Step(state, max(event.at_ns, latest))
    made.apply(event)
    made.settle()
    after = made.state
    watched = [(item.name, item.last_status, item.health_status) for item in state.containers]
    if (
        state.last_status != after.last_status
        or state.desired_status != after.desired_status
        or watched != [(c.name, c.last_status, c.health_status) for c in after.containers]
    ):
        after = replace(after, version=state.version + 1)
    return after, tuple(made.actions)
