"""`run_task` and the handle that it returns; `import fargatelite` shows these."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal

from fargatelite import names
from fargatelite.errors import ConfigurationInvalid
from fargatelite.network.slot import PortPublication, Protocol
from fargatelite.rundir import RunDirectory, ensure_private_directory
from fargatelite.runtime import task as machine
from fargatelite.runtime.describe import TaskFacts
from fargatelite.runtime.events import Event
from fargatelite.runtime.execute import SupervisedTask
from fargatelite.runtime.logs import LogFollower, LogLine
from fargatelite.runtime.supervise import get_supervisor
from fargatelite.runtime.trace import Phase, Timeline
from fargatelite.settings import Settings, load_settings
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.launch_type import LaunchType, policy_for
from fargatelite.taskdef.load import load_definition, to_wire
from fargatelite.taskdef.overrides import apply_overrides
from fargatelite.taskdef.store import find_source

if TYPE_CHECKING:
    from fargatelite.billing.bill import Bill

__all__ = ["Container", "Task", "run_task"]

Definition = TaskDefinition | Mapping[str, Any] | str | bytes | os.PathLike[str]
PublishSpec = PortPublication | str


def parse_publication(text: str) -> PortPublication:
    """`[ADDRESS:]HOST_PORT:CONTAINER_PORT[/tcp|/udp]`, as podman's --publish; the address is
    loopback and 127.0.0.1 by default.

    Raises: ConfigurationInvalid.
    """
    mapping, _, protocol = text.partition("/")
    parts = mapping.split(":")
    address = parts.pop(0) if len(parts) == 3 else "127.0.0.1"
    if (
        len(parts) != 2
        or not all(part.isascii() and part.isdigit() for part in parts)
        or not all(0 < int(part) < 65536 for part in parts)
        or (protocol or "tcp") not in ("tcp", "udp")
        or not address.startswith("127.")
    ):
        raise ConfigurationInvalid(
            f"cannot publish {text!r}: expected [127.x.y.z:]HOST_PORT:CONTAINER_PORT[/tcp|/udp]"
        )
    return PortPublication(
        host_address=address,
        host_port=int(parts[0]),
        container_port=int(parts[1]),
        protocol=Protocol(protocol or "tcp"),
    )


class Container:
    """One container of a running or stopped task; reads the task's current state."""

    def __init__(self, task: Task, name: str) -> None:
        self._task = task
        self.name = name

    @property
    def _state(self) -> machine.ContainerState:
        return next(c for c in self._task.state.containers if c.name == self.name)

    @property
    def last_status(self) -> str:
        """PENDING, RUNNING or STOPPED (contract 3.1)."""
        return str(self._state.last_status)

    @property
    def health_status(self) -> str:
        """HEALTHY, UNHEALTHY or UNKNOWN (contract 3.7)."""
        return str(self._state.health_status)

    @property
    def exit_code(self) -> int | None:
        """None until it has stopped, and for one that never started."""
        return self._state.exit_code

    @property
    def reason(self) -> str | None:
        """Why it stopped or did not start, where there is something to say."""
        return self._state.reason

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.last_status} exit_code={self.exit_code}>"


class Task:
    """A task that this process runs. Usable from any thread; as a context manager it is stopped
    and waited for on exit."""

    def __init__(self, supervised: SupervisedTask) -> None:
        self._supervised = supervised
        self.containers = {
            container.name: Container(self, container.name)
            for container in supervised.definition.containers
        }
        """By name, in the order of the definition."""

    @property
    def id(self) -> str:
        """32 hex characters."""
        return str(self._supervised.run.task_id)

    @property
    def arn(self) -> str:
        """The task's ARN in the long format."""
        settings = self._supervised.settings
        return names.task_arn(
            settings.region, settings.account, settings.cluster, self._supervised.run.task_id
        )

    @property
    def state(self) -> machine.TaskState:
        """A snapshot of the state machine's state."""
        return self._supervised.state

    @property
    def last_status(self) -> str:
        """PROVISIONING ... STOPPED (contract 3.1)."""
        return str(self.state.last_status)

    @property
    def stop_code(self) -> str | None:
        """Contract 3.2; None while it runs."""
        return self.state.stop_code

    @property
    def stopped_reason(self) -> str | None:
        """Contract 3.2; None while it runs."""
        return self.state.stopped_reason

    @property
    def exit_code(self) -> int | None:
        """The exit code of the essential container that stopped first; None while none has, and
        when the task never started."""
        return essential_exit_code(self.state)

    @property
    def address(self) -> str | None:
        """The task's own IPv4 address, reachable from the host; None before provisioning."""
        return self._supervised.facts.private_ipv4_address

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Where the time went so far."""
        return tuple(self._supervised.timeline.phases)

    @property
    def op_traces(self) -> dict[str, list[tuple[str, int]]]:
        """With `trace=True`: per container each plan operation and its microseconds."""
        return self._supervised.op_traces

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits until the task is STOPPED and removed; returns `exit_code`.

        Raises: TimeoutError after `timeout` seconds.
        """
        if not self._supervised.wait_finished(timeout):
            raise TimeoutError(f"task {self.id} is still {self.last_status} after {timeout} s")
        return self.exit_code

    def until(self, status: str, timeout: float | None = None) -> Task:
        """Waits until the task has reached `status` (or gone beyond it, to STOPPED).

        Raises: TimeoutError; ValueError for a status that ECS does not have.
        """
        order = [str(known) for known in machine.TASK_STATUS_ORDER]
        if status not in order:
            raise ValueError(f"{status!r} is no task status; one of {', '.join(order)}")
        wanted = order.index(status)
        changed = self._supervised.changed
        with changed:
            if not changed.wait_for(lambda: order.index(self.last_status) >= wanted, timeout):
                raise TimeoutError(f"task {self.id} is {self.last_status}, not {status}")
        return self

    def stop(self, reason: str = "Task stopped by user", *, wait: bool = True) -> None:
        """Stops the task: stop signals in reverse dependency order, SIGKILL after `stopTimeout`.

        Source: contract 3.6. With `wait` (default) returns when it is STOPPED and removed.
        """
        self._supervised.request_stop("UserInitiated", reason)
        if wait:
            self._supervised.wait_finished(None)

    def logs(self, container: str | None = None, *, follow: bool = False) -> Iterator[LogLine]:
        """Log records of one container or all; with `follow` until the task is over.

        Raises: KeyError for an unknown container.
        """
        chosen = (self.containers[container].name,) if container else tuple(self.containers)
        supervised = self._supervised
        records = supervised.settings.records
        (records / self.id / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        follower = LogFollower(records, self.id, chosen)
        try:
            if not follow:
                yield from follower.read_new()
                return
            wake = os.eventfd(0, os.EFD_CLOEXEC)

            def wake_at_the_end() -> None:
                supervised.wait_finished(None)
                os.eventfd_write(wake, 1)

            waiter = threading.Thread(target=wake_at_the_end, daemon=True)
            waiter.start()
            try:
                yield from follower.follow(lambda: supervised.is_finished, wake)
            finally:
                if supervised.is_finished:
                    waiter.join()
                    os.close(wake)
        finally:
            follower.close()

    def describe(self) -> dict[str, Any]:
        """The task in the exact shape of DescribeTasks (contract 8.3)."""
        return self._supervised.record().describe()

    def stats(self) -> dict[str, dict[str, int]]:
        """Per container (and "" for the task): `cpu_usage_ns`, `memory_bytes`,
        `memory_peak_bytes`, read now."""
        from fargatelite.runtime.usage import read_stats

        return read_stats(self._supervised.record())

    def bill(self) -> Bill:
        """What the task has cost until now, or in all once it has stopped (contract 7)."""
        from fargatelite.runtime.usage import compute_task_bill

        return compute_task_bill(self._supervised.settings, self._supervised.record())

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop("the context that ran the task ended")

    def __repr__(self) -> str:
        return f"<Task {self.id[:12]} {self._supervised.definition.family} {self.last_status}>"


def essential_exit_code(state: machine.TaskState) -> int | None:
    """The exit code of the essential container that stopped first."""
    stopped = [
        container
        for container in state.containers
        if container.essential and container.exit_code is not None
    ]
    if not stopped:
        return None
    return min(stopped, key=lambda container: container.finished_at_ns or 0).exit_code


def _copy_logs(task: Task, out: IO[str]) -> None:
    for line in task.logs(follow=True):
        text = line.text.decode("utf-8", "replace")
        out.write(text if line.is_partial else text + "\n")
        out.flush()


def _bridge_ports(definition: TaskDefinition) -> list[PortPublication]:
    """EC2's bridge maps host ports; here they answer on the host's loopback, as --publish."""
    if definition.network_mode not in (None, "bridge"):
        return []
    return [
        PortPublication(
            host_port=port.host_port,
            container_port=port.container_port,
            protocol=Protocol.UDP if port.protocol == "udp" else Protocol.TCP,
        )
        for container in definition.containers
        for port in container.port_mappings
        if port.host_port and port.container_port
    ]


def run_task(
    definition: Definition,
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    started_by: str | None = None,
    group: str | None = None,
    enable_execute_command: bool = False,
    pull: Literal["always", "missing", "never"] = "always",
    publish: tuple[PublishSpec, ...] | list[PublishSpec] = (),
    on_event: Callable[[Event], None] | None = None,
    stdout: IO[str] | None = None,
    launch_type: LaunchType = "FARGATE",
    allow_privileged: bool = False,
    address: str | None = None,
    trace: bool = False,
    settings: Settings | None = None,
) -> Task:
    """Runs a task definition and returns at once; the task lives on the supervisor's thread.

    Args:
        definition: a dict, JSON text, a path, a `TaskDefinition`, or the family, family:revision or
            ARN of a registered one (a path wins when it exists).
        overrides: RunTask's `overrides` (contract 8.3).
        tags, started_by, group, enable_execute_command: as RunTask's; `group` is
            `family:<family>` by default.
        pull: `always` asks the registry for the digest as Fargate does, and takes layers from the
            store; `missing` asks only for an image that is not there; `never` asks nobody.
        publish: ports of the task on the host's loopback, `8080:80` or PortPublication.
        on_event: called for each Event, in order, on a thread of its own.
        stdout: gets all containers' output as text.
        launch_type: `FARGATE`, or `EC2` for what ECS takes on one's own machine.
        allow_privileged: as the setting: whether EC2's privileged containers may run.
        address: the task's own IPv4 address; needs the setting beyond_fargate.fixed_address.
        trace: record the time of each plan operation.
        settings: roots and region; by default those of `load_settings()`.

    Raises:
        InvalidTaskDefinition: with all problems at once.
        ConfigurationInvalid, HostUnsupported: nothing has happened then.
    """
    timeline = Timeline()
    settings = settings or load_settings()
    with timeline.phase("task definition"):
        policy = policy_for(launch_type, settings, allow_privileged=allow_privileged)
        loaded = (
            definition
            if isinstance(definition, TaskDefinition)
            else load_definition(find_source(settings, definition), policy)
        )
        loaded = apply_overrides(loaded, dict(overrides) if overrides else None, policy)
        publications = tuple(
            parse_publication(item) if isinstance(item, str) else item
            for item in (*publish, *_bridge_ports(loaded))
        )
        if address is not None and not settings.beyond_fargate.fixed_address:
            raise ConfigurationInvalid(
                "a task's address is chosen by this host: set beyond_fargate.fixed_address in the "
                "configuration file to ask for one"
            )
        wire = to_wire(loaded)
    from fargatelite.runtime.usage import get_sampler

    task_id = names.new_task_id()
    with timeline.phase("run directory"):
        ensure_private_directory(Path(settings.data_root))
        (settings.records / task_id).mkdir(mode=0o700, parents=True, exist_ok=True)
        run = RunDirectory.create(settings.runs, task_id)
    supervised = SupervisedTask(
        get_supervisor(settings),
        run,
        loaded,
        machine.new_state(loaded, task_id, time.time_ns()),
        TaskFacts(
            account=settings.account,
            region=settings.region,
            cluster=settings.cluster,
            group=group or f"family:{loaded.family}",
            started_by=started_by,
            tags=dict(tags or {}),
            overrides=dict(overrides or {}),
            enable_execute_command=enable_execute_command,
            launch_type=launch_type,
        ),
        wire=wire,
        pull_policy=pull,
        publish=publications,
        address=address,
        trace=trace,
        sampler=get_sampler(),
        timeline=timeline,
        on_event=on_event,
    )
    supervised.begin()
    task = Task(supervised)
    if stdout is not None:
        threading.Thread(target=_copy_logs, args=(task, stdout), daemon=True).start()
    return task
