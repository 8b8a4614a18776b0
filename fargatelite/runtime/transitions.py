"""The life of a task as a pure function: `step(state, event) -> (state, actions)`.

No clock, no kernel, no files: every event carries its time, every effect is an action that the
executor (execute.py) carries out and answers with another event. So a life can be played back,
tested without root, and taken over by another process from its recorded state.

Rules: contract 3.1 to 3.8.
"""

from __future__ import annotations

from msgspec.structs import replace

from fargatelite.runtime.dependencies import (
    Condition,
    ContainerStep,
    Dependency,
    Verdict,
    dependents_of,
    judge,
)
from fargatelite.runtime.task import (
    Action,
    CancelTimer,
    ContainerExited,
    ContainerPulled,
    ContainerStarted,
    ContainerStartFailed,
    ContainerState,
    Created,
    Deprovision,
    DeprovisionFinished,
    Event,
    Finished,
    HealthPolicy,
    HealthResult,
    HealthStatus,
    InputsFailed,
    KillContainer,
    Provision,
    ProvisionFailed,
    ProvisionSucceeded,
    PullFailed,
    PullFinished,
    PullImages,
    PullStarted,
    RestartContainer,
    RunHealthCheck,
    SetTimer,
    SignalContainer,
    StartContainer,
    StopRequested,
    TaskState,
    TaskStatus,
    TimerFired,
    TimerKey,
)

__all__ = ["step", "will_restart"]

SECOND_NS = 1_000_000_000
UNMET_DEPENDENCY_EXIT_CODE = 143  # contract 3.3: never started because a dependency cannot be met
OOM_REASON = "OutOfMemoryError: Container killed due to memory usage"
ESSENTIAL_REASON = "Essential container in task exited"
FAILED_TO_START_REASON = "Task failed to start"


def will_restart(state: TaskState, name: str, exit_code: int, at_ns: int) -> bool:
    """Whether a container that exits now is started again (contract 3.8): it must have run for the
    policy's period since its start or its last restart, whichever came later."""
    container = state.container(name)
    rule = container.restart_rule
    if (
        rule is None
        or state.desired_status == "STOPPED"
        or container.is_signalled
        or container.step != ContainerStep.RUNNING
        or exit_code in rule.ignored_exit_codes
    ):
        return False
    since = max(container.started_at_ns or 0, container.restarted_at_ns or 0)
    return at_ns - since >= rule.attempt_period_s * SECOND_NS


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
            case InputsFailed(reason=reason):
                self.set(pending=None, pull_stopped_at_ns=self.at_ns)
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
        if container.is_restarting:
            self.set_container(
                name,
                is_restarting=False,
                pid=pid,
                started_at_ns=self.at_ns,
                restarted_at_ns=self.at_ns,
                restart_count=container.restart_count + 1,
            )
            if container.health_policy is not None:
                self.set_health_timer(name, container.health_policy)
            return
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
        if container.step >= ContainerStep.RUNNING and not container.is_restarting:
            return
        self.set_container(
            name,
            step=ContainerStep.STOPPED,
            is_restarting=False,
            finished_at_ns=self.at_ns,
            reason=reason[:1024],
            exit_code=exit_code,
        )
        if container.essential and container.is_restarting:
            self.set(execution_stopped_at_ns=self.state.execution_stopped_at_ns or self.at_ns)
            self.want_stop("EssentialContainerExited", ESSENTIAL_REASON)
        elif container.essential:
            self.want_stop("TaskFailedToStart", FAILED_TO_START_REASON)

    def exited(self, name: str, exit_code: int, oom: bool) -> None:
        container = self.state.container(name)
        if container.step == ContainerStep.STOPPED or container.is_restarting:
            return
        if will_restart(self.state, name, exit_code, self.at_ns):
            self.restart(container, exit_code, oom)
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

    def restart(self, container: ContainerState, exit_code: int, oom: bool) -> None:
        first = container.first_exit_code
        self.set_container(
            container.name,
            is_restarting=True,
            exit_code=exit_code,
            first_exit_code=exit_code if first is None else first,
            reason=OOM_REASON if oom else container.reason,
            health_status=HealthStatus.UNKNOWN,
            health_since_ns=self.at_ns,
            health_failures=0,
        )
        for kind in ("health", "start"):
            self.do(CancelTimer(TimerKey(kind, container.name)))
        self.do(RestartContainer(container.name))

    def set_health_timer(self, name: str, policy: HealthPolicy) -> None:
        self.do(SetTimer(TimerKey("health", name), self.at_ns + policy.interval_s * SECOND_NS))

    def health_result(self, name: str, event: HealthResult) -> None:
        container = self.state.container(name)
        policy = container.health_policy
        if policy is None or container.step != ContainerStep.RUNNING or container.is_restarting:
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
            case "health" if (
                container.step == ContainerStep.RUNNING
                and not container.is_signalled
                and not container.is_restarting
            ):
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
        # A container that starts may be what another, before it in the definition, has waited for.
        while self.start_those_that_may():
            pass
        if (
            self.state.desired_status == "RUNNING"
            and self.state.last_status == TaskStatus.ACTIVATING
            and self.state.containers
            and all(container.step >= ContainerStep.RUNNING for container in self.state.containers)
        ):
            self.set(last_status=TaskStatus.RUNNING, started_at_ns=self.at_ns)

    def start_those_that_may(self) -> bool:
        """Whether one was started."""
        is_one_started = False
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
                return False
            if all(verdict == Verdict.MET for verdict, _ in verdicts):
                self.set_container(container.name, step=ContainerStep.STARTING)
                self.do(StartContainer(container.name))
                is_one_started = True
        return is_one_started

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
            if container.is_restarting:
                continue  # its start or failure is on the way
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
