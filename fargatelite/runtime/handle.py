"""What a program holds of a task: one of its own (`Task`), or one that another process supervises
(`RecordedTask`), which is read from its record and followed by inotify."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fargatelite import names
from fargatelite.errors import TaskNotFound
from fargatelite.rundir import DesiredStop, RunDirectory
from fargatelite.runtime import task as machine
from fargatelite.runtime.logs import LogFollower, LogLine
from fargatelite.runtime.record import TaskRecord, find_record, read_record
from fargatelite.runtime.remote import (
    LOOK_AGAIN_S,
    StateWatch,
    ensure_task_supervised,
    wait_stopped,
)
from fargatelite.runtime.trace import Phase
from fargatelite.settings import Settings, load_settings

if TYPE_CHECKING:
    from fargatelite.billing.bill import Bill
    from fargatelite.runtime.execute import SupervisedTask

__all__ = ["Container", "RecordedTask", "Task", "TaskHandle", "essential_exit_code", "find_task"]


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


class Container:
    """One container of a running or stopped task; reads the task's current state."""

    def __init__(self, task: TaskHandle, name: str) -> None:
        self._task = task
        self.name = name

    @property
    def _state(self) -> machine.ContainerState:
        return self._task.state.container(self.name)

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


class _End:
    """Tells all who follow a task that it is over: one thread, however many come and go."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait = wait
        self._wakes: set[int] = set()
        self._lock = threading.Lock()
        self._is_watched = self._is_over = False

    @contextlib.contextmanager
    def waking(self) -> Iterator[int]:
        """A descriptor that becomes readable when the task is over."""
        wake = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            with self._lock:
                self._wakes.add(wake)
                if self._is_over:
                    os.eventfd_write(wake, 1)
                elif not self._is_watched:
                    threading.Thread(target=self._watch, daemon=True).start()
                    self._is_watched = True
            yield wake
        finally:
            with self._lock:
                self._wakes.discard(wake)
            os.close(wake)

    def _watch(self) -> None:
        try:
            self._wait()
        finally:
            with self._lock:
                self._is_over = True
                for wake in self._wakes:
                    os.eventfd_write(wake, 1)


class TaskHandle(ABC):
    """A task, whoever supervises it. Usable from any thread; as a context manager it is stopped and
    waited for on exit."""

    def __init__(self, settings: Settings, task_id: str, containers: tuple[str, ...]) -> None:
        self._settings = settings
        self.id = task_id
        """32 hex characters."""
        self._end = _End(self.wait)
        self.containers = {name: Container(self, name) for name in containers}
        """By name, in the order of the definition."""

    # ---- whose it is ----

    @abstractmethod
    def record(self) -> TaskRecord:
        """The task as it is written down now."""

    @property
    @abstractmethod
    def state(self) -> machine.TaskState:
        """A snapshot of the state machine's state."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> int | None:
        """Waits until the task is STOPPED and removed; returns `exit_code`.

        Raises: TimeoutError after `timeout` seconds.
        """

    @abstractmethod
    def until(self, status: str, timeout: float | None = None) -> Self:
        """Waits until the task has reached `status` (or gone beyond it, to STOPPED).

        Raises: TimeoutError; ValueError for a status that ECS does not have.
        """

    @abstractmethod
    def stop(self, reason: str = "Task stopped by user", *, wait: bool = True) -> None:
        """Stops the task: stop signals in reverse dependency order, SIGKILL after `stopTimeout`.

        Source: contract 3.6. With `wait` (default) returns when it is STOPPED and removed.
        """

    @abstractmethod
    def _is_over(self) -> bool:
        """Whether it is STOPPED and nothing more will be written."""

    # ---- what is known of it ----

    @property
    def arn(self) -> str:
        """The task's ARN in the long format."""
        settings = self._settings
        return names.task_arn(
            settings.region, settings.account, settings.cluster, names.TaskId(self.id)
        )

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
        return self.record().facts.private_ipv4_address

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Where the time went so far."""
        return self.record().phases

    def logs(self, container: str | None = None, *, follow: bool = False) -> Iterator[LogLine]:
        """Log records of one container or all; with `follow` until the task is over.

        Raises: KeyError for an unknown container.
        """
        chosen = (self.containers[container].name,) if container else tuple(self.containers)
        records = self._settings.records
        (records / self.id / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        follower = LogFollower(records, self.id, chosen)
        try:
            if not follow:
                yield from follower.read_new()
                return
            with self._end.waking() as wake:
                yield from follower.follow(self._is_over, wake)
        finally:
            follower.close()

    def describe(self) -> dict[str, Any]:
        """The task in the exact shape of DescribeTasks (contract 8.3)."""
        return self.record().describe()

    def stats(self) -> dict[str, dict[str, int]]:
        """Per container (and "" for the task): `cpu_usage_ns`, `memory_bytes`,
        `memory_peak_bytes`, read now."""
        from fargatelite.runtime.usage import read_stats

        return read_stats(self.record())

    def bill(self) -> Bill:
        """What the task has cost until now, or in all once it has stopped (contract 7)."""
        from fargatelite.runtime.usage import compute_task_bill

        return compute_task_bill(self._settings, self.record())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop("the context that ran the task ended")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id[:12]} {self.last_status}>"


def _order_of(status: str) -> tuple[list[str], int]:
    order = [str(known) for known in machine.TASK_STATUS_ORDER]
    if status not in order:
        raise ValueError(f"{status!r} is no task status; one of {', '.join(order)}")
    return order, order.index(status)


class Task(TaskHandle):
    """A task that this process runs."""

    def __init__(self, supervised: SupervisedTask) -> None:
        super().__init__(
            supervised.settings,
            str(supervised.run.task_id),
            tuple(container.name for container in supervised.definition.containers),
        )
        self._supervised = supervised

    @property
    def op_traces(self) -> dict[str, list[tuple[str, int]]]:
        """With `trace=True`: per container each plan operation and its microseconds."""
        return self._supervised.op_traces

    def record(self) -> TaskRecord:
        """See TaskHandle."""
        return self._supervised.record()

    @property
    def state(self) -> machine.TaskState:
        """See TaskHandle."""
        return self._supervised.state

    def wait(self, timeout: float | None = None) -> int | None:
        """See TaskHandle."""
        if not self._supervised.wait_finished(timeout):
            raise TimeoutError(f"task {self.id} is still {self.last_status} after {timeout} s")
        return self.exit_code

    def until(self, status: str, timeout: float | None = None) -> Self:
        """See TaskHandle."""
        order, wanted = _order_of(status)
        changed = self._supervised.changed
        with changed:
            if not changed.wait_for(lambda: order.index(self.last_status) >= wanted, timeout):
                raise TimeoutError(f"task {self.id} is {self.last_status}, not {status}")
        return self

    def stop(self, reason: str = "Task stopped by user", *, wait: bool = True) -> None:
        """See TaskHandle."""
        self._supervised.request_stop("UserInitiated", reason)
        if wait:
            self._supervised.wait_finished(None)

    def _is_over(self) -> bool:
        return self._supervised.is_finished


class RecordedTask(TaskHandle):
    """A task that another process supervises, or that has stopped."""

    def __init__(self, settings: Settings, record: TaskRecord) -> None:
        super().__init__(
            settings, record.task_id, tuple(item.name for item in record.state.containers)
        )
        self._run = RunDirectory(settings.runs, names.TaskId(self.id))

    def record(self) -> TaskRecord:
        """See TaskHandle. Raises: TaskNotFound once `gc` has removed it."""
        return read_record(self._settings, self.id)

    @property
    def state(self) -> machine.TaskState:
        """See TaskHandle."""
        return self.record().state

    def wait(self, timeout: float | None = None) -> int | None:
        """See TaskHandle. Raises: FargateliteError when nobody can supervise the task any more."""
        return essential_exit_code(wait_stopped(self._settings, self.id, timeout).state)

    def until(self, status: str, timeout: float | None = None) -> Self:
        """See TaskHandle."""
        order, wanted = _order_of(status)
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = StateWatch(self._settings, self.id)
        try:
            record = self.record()
            while order.index(str(record.state.last_status)) < wanted:
                ensure_task_supervised(self._settings, self._run)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"task {self.id} is {record.state.last_status}")
                # A supervisor that is killed changes no file: look again now and then.
                record = watch.read(LOOK_AGAIN_S if left is None else min(left, LOOK_AGAIN_S))
        finally:
            watch.close()
        return self

    def stop(self, reason: str = "Task stopped by user", *, wait: bool = True) -> None:
        """See TaskHandle. Raises: TaskBusy when nobody can supervise the task any more."""
        if self.last_status == "STOPPED":
            return
        ensure_task_supervised(self._settings, self._run)
        try:
            self._run.request_stop(DesiredStop(stop_code="UserInitiated", reason=reason))
        except TaskNotFound:
            return  # it has just stopped
        if wait:
            self.wait()

    def _is_over(self) -> bool:
        return self.last_status == "STOPPED" and not self._run.path.exists()


def find_task(text: str, *, settings: Settings | None = None) -> RecordedTask:
    """The task that an id, a unique beginning of one, or an ARN names, whoever supervises it.

    Raises: TaskNotFound; TaskAmbiguous with the candidates.
    """
    settings = settings or load_settings()
    return RecordedTask(settings, find_record(settings, text))
