"""Keeps the sum of task sizes within what the host's configuration grants (`capacity`), and the
line of launches that wait for room.

A task is counted from before anything of it is made until its run directory is gone, with or
without a supervisor: what counts is what may run. Sizes lie in the run directories, so that no
process has to tell another, and one lock makes two launches at once take turns.

A launch that waits has a ticket, `<run root>/waiting/<number>-<task id>`, in order of arrival among
all processes. The ticket is locked by its process, so that one of a killed process is nobody's and
the next look removes it. Only the first in line may take room, and nobody passes the line: else
small launches would keep a large one out for ever. How a launch waits: `runtime.waiting`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fargatelite.descriptors import move_high
from fargatelite.errors import CapacityExceeded
from fargatelite.rundir import RunDirectory, ensure_private_directory
from fargatelite.settings import Settings
from fargatelite.taskdef.fields import TaskDefinition

__all__ = [
    "Room",
    "Size",
    "Ticket",
    "admitted",
    "count_ahead",
    "first_bound",
    "is_next",
    "lack_of",
    "line_of",
    "locked",
    "remove_lost_tickets",
]


class Size(NamedTuple):
    """What a task takes of the host."""

    cpu_units: int
    memory_mib: int


class Lack(NamedTuple):
    """Why a task does not fit: ECS' reason and a sentence."""

    reason: str
    text: str


class Ticket:
    """A launch's place in the line. It lives as long as its descriptor."""

    def __init__(self, path: Path, descriptor: int, run: RunDirectory, size: Size) -> None:
        self.path = path
        self.run = run
        self.size = size
        self._descriptor = descriptor

    def give_back(self) -> None:
        """Leaves the line; may be repeated."""
        self.path.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Room(NamedTuple):
    """What a launch was given: room now, or, where `must_wait`, a place in the line."""

    settings: Settings
    size: Size
    must_wait: bool

    def take(self, run: RunDirectory) -> Ticket | None:
        """Counts the task of this run directory, or has it wait; while `admitted`."""
        if not self.must_wait:
            run.write_size(*self.size)
            return None
        waiting = ensure_private_directory(line_of(self.settings))
        last = max((int(name[:20]) for name in _names(waiting)), default=0)
        path = waiting / f"{last + 1:020d}-{run.task_id}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = move_high(os.open(path, flags, 0o600))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Ticket(path, descriptor, run, self.size)


def size_of(definition: TaskDefinition) -> Size:
    """CPU units and MiB of a task; on EC2, where a task may have no size, its containers' sum."""
    containers = definition.containers
    cpu = definition.cpu_units or sum(item.cpu_units for item in containers)
    memory = definition.memory_mib or sum(
        item.memory_mib or item.memory_reservation_mib or 0 for item in containers
    )
    return Size(cpu, memory)


def line_of(settings: Settings) -> Path:
    """The directory of tickets: it changes whenever somebody leaves the line."""
    return Path(settings.run_root, "waiting")


@contextlib.contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """One at a time among all processes of a run root: whoever looks at sizes and tickets."""
    run_root = ensure_private_directory(Path(settings.run_root))
    lock = os.open(run_root / "capacity.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def admitted(
    settings: Settings, definition: TaskDefinition, wait_s: float = 0
) -> Iterator[Room | None]:
    """Room for the task while the block runs, which makes its run directory and takes the room;
    None when the host has no bound. With `wait_s` it may be a place in the line.

    Raises: CapacityExceeded: it does not fit and may not wait, would never fit, or the line is
        full.
    """
    capacity = settings.capacity
    if capacity.cpu_units is None and capacity.memory_mib is None:
        yield None
        return
    size = size_of(definition)
    with locked(settings):
        ahead = sum(1 for _ in _living(settings))
        lack = lack_of(settings, size)
        if lack is None and ahead:
            lack = Lack(first_bound(settings), f"{ahead} launches wait for room ahead of it")
        if lack is not None:
            never = lack_of(settings, size, is_alone=True)
            if never is not None:
                raise CapacityExceeded(
                    never.reason, f"{never.text}; it fits no time: ask for less, or raise the bound"
                )
            if not wait_s:
                raise CapacityExceeded(
                    lack.reason, f"{lack.text}; stop a task, or wait for one to end"
                )
            if ahead >= capacity.max_waiting:
                raise CapacityExceeded(
                    lack.reason,
                    f"{lack.text}, and {ahead} launches wait already (capacity.max_waiting); "
                    "stop a task, or try again later",
                )
        yield Room(settings, size, must_wait=lack is not None)


def first_bound(settings: Settings) -> str:
    """ECS' word for what a launch waits for that would fit, were it not for those ahead of it."""
    return "RESOURCE:CPU" if settings.capacity.memory_mib is None else "RESOURCE:MEMORY"


def lack_of(settings: Settings, size: Size, *, is_alone: bool = False) -> Lack | None:
    """What of this size does not fit beside the tasks that count, or with `is_alone` beside none;
    None when it fits."""
    capacity = settings.capacity
    runs = () if is_alone else RunDirectory.list_all(settings.runs)
    sizes = [run.read_size() for run in runs]
    taken = sum(cpu for cpu, _ in sizes), sum(memory for _, memory in sizes)
    for reason, unit, wanted, used, most, setting in (
        ("RESOURCE:CPU", "CPU units", size[0], taken[0], capacity.cpu_units, "cpu_units"),
        ("RESOURCE:MEMORY", "MiB", size[1], taken[1], capacity.memory_mib, "memory_mib"),
    ):
        if most is not None and used + wanted > most:
            text = f"the task wants {wanted} {unit}, and {used} of this host's {most}"
            return Lack(reason, f"{text} (capacity.{setting}) are taken")
    return None


def is_next(settings: Settings, ticket: Ticket) -> bool:
    """Whether nobody waits ahead of it; while `locked`."""
    return next(_living(settings), None) == ticket.path.name


def count_ahead(settings: Settings, ticket: Ticket) -> int:
    """How many launches wait ahead of it; while `locked`."""
    return sum(1 for name in _living(settings) if name < ticket.path.name)


def remove_lost_tickets(settings: Settings) -> None:
    """Removes those of killed processes, for `gc`; whoever waits does it too."""
    if line_of(settings).exists():
        with locked(settings):
            for _ in _living(settings):
                pass


def _names(waiting: Path) -> list[str]:
    try:
        return sorted(os.listdir(waiting))
    except FileNotFoundError:
        return []


def _living(settings: Settings) -> Iterator[str]:
    """Tickets of the line, first come first; those of killed processes are removed on the way."""
    waiting = line_of(settings)
    for name in _names(waiting):
        # For reading: closing one that is open for writing tells those who wait that its process
        # has gone.
        try:
            fd = os.open(waiting / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # given back just now, which needs no lock
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield name
        else:
            (waiting / name).unlink(missing_ok=True)
        finally:
            os.close(fd)
