"""A task as data: its state, what can happen to it (events), what is to be done (actions).

What follows from what is in transitions.py.

    PROVISIONING  slot, groups, shim, network        -> PENDING
    PENDING       images                             -> ACTIVATING
    ACTIVATING    containers start, in order          -> RUNNING
    RUNNING       until something ends it             -> STOPPING
    STOPPING      stop signals in reverse order       -> DEPROVISIONING
    DEPROVISIONING everything is removed              -> STOPPED

Any state may jump to the stop path. Rules: contract 3.1 to 3.8.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fargatelite.runtime.dependencies import (
    Condition,
    ContainerStep,
    Dependency,
)

if TYPE_CHECKING:
    from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition

__all__ = [
    "TASK_STATUS_ORDER",
    "Action",
    "ContainerState",
    "Event",
    "HealthPolicy",
    "HealthStatus",
    "RestartRule",
    "TaskState",
    "TaskStatus",
    "TimerKey",
    "new_state",
]


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


class RestartRule(msgspec.Struct, frozen=True, kw_only=True):
    """An enabled restartPolicy (contract 3.8)."""

    ignored_exit_codes: tuple[int, ...]
    attempt_period_s: int


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
    restart_rule: RestartRule | None = None

    step: ContainerStep = ContainerStep.NONE
    is_signalled: bool = False
    is_start_timed_out: bool = False
    image_digest: str | None = None
    pid: int | None = None
    started_at_ns: int | None = None
    finished_at_ns: int | None = None
    exit_code: int | None = None
    reason: str | None = None
    is_restarting: bool = False
    """Between an exit and the start that follows it; `step` stays RUNNING, as ECS reports it."""
    restart_count: int = 0
    restarted_at_ns: int | None = None
    first_exit_code: int | None = None
    """Of a container that was restarted: what its dependents go by (contract 3.5)."""

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


class InputsFailed(Event, frozen=True, kw_only=True):
    """A secret, environment file or registry login cannot be had; `reason` with its ECS prefix. It
    answers PullImages as PullFailed does: the pull is broken off."""

    reason: str


class PullFinished(Event, frozen=True, kw_only=True):
    """All images are there, and what containers take from AWS."""


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
    """Answered by PullStarted, ContainerPulled for each, and PullFinished, PullFailed or
    InputsFailed."""


class StartContainer(Action, frozen=True):
    """Answered by ContainerStarted or ContainerStartFailed."""

    name: str


class RestartContainer(Action, frozen=True):
    """The same container once more: its group, its writable layer. Answered as StartContainer."""

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


def _dependencies(container: ContainerDefinition, router: str | None) -> tuple[Dependency, ...]:
    """As defined; who logs through a FireLens router starts after it, and stops before; who takes
    volumes from a container comes after it is made, who links to it after it runs (contract 3.5).
    """
    dependencies = [
        Dependency(container=item.container_name, condition=Condition(item.condition))
        for item in container.depends_on
    ]
    log = container.log_configuration
    is_routed = log is not None and log.log_driver == "awsfirelens"
    known = {dependency.container for dependency in dependencies}
    if router is not None and is_routed and router not in known:
        dependencies.append(Dependency(container=router, condition=Condition.START))
    for link in container.links:
        target = link.partition(":")[0]
        dependencies.append(Dependency(container=target, condition=Condition.START))
    dependencies += [
        Dependency(container=item.source_container, condition=Condition.CREATE)
        for item in container.volumes_from
        if item.source_container is not None
    ]
    return tuple(dependencies)


def new_state(definition: TaskDefinition, task_id: str, created_at_ns: int) -> TaskState:
    """The state of a task before its first event."""
    containers = []
    router = next((c.name for c in definition.containers if c.firelens_configuration), None)
    for container in definition.containers:
        check, policy = container.health_check, container.restart_policy
        containers.append(
            ContainerState(
                name=container.name,
                essential=container.essential,
                depends_on=_dependencies(container, router),
                start_timeout_s=container.start_timeout_s,
                stop_timeout_s=container.stop_timeout_s,
                health_policy=HealthPolicy(
                    interval_s=check.interval_s,
                    retries=check.retries,
                    start_period_s=check.start_period_s or 0,
                )
                if check is not None
                else None,
                restart_rule=RestartRule(
                    ignored_exit_codes=policy.ignored_exit_codes,
                    attempt_period_s=policy.restart_attempt_period_s,
                )
                if policy is not None and policy.enabled
                else None,
            )
        )
    return TaskState(task_id=task_id, containers=tuple(containers), created_at_ns=created_at_ns)
