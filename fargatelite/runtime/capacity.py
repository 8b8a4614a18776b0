"""Keeps the sum of task sizes within what the host's configuration grants (`capacity`).

A task is counted from before anything of it is made until its run directory is gone, with or
without a supervisor: what counts is what may run. Sizes lie in the run directories, so that no
process has to tell another, and one lock makes two launches at once take turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fargatelite.errors import CapacityExceeded
from fargatelite.rundir import RunDirectory, ensure_private_directory
from fargatelite.settings import Settings
from fargatelite.taskdef.fields import TaskDefinition

__all__ = ["admitted"]


def size_of(definition: TaskDefinition) -> tuple[int, int]:
    """CPU units and MiB of a task; on EC2, where a task may have no size, its containers' sum."""
    containers = definition.containers
    cpu = definition.cpu_units or sum(item.cpu_units for item in containers)
    memory = definition.memory_mib or sum(
        item.memory_mib or item.memory_reservation_mib or 0 for item in containers
    )
    return cpu, memory


@contextlib.contextmanager
def admitted(settings: Settings, definition: TaskDefinition) -> Iterator[tuple[int, int] | None]:
    """Room for the task while the block runs, which makes its run directory and writes the yielded
    size into it (`RunDirectory.write_size`); None when the host has no bound.

    Raises: CapacityExceeded.
    """
    capacity = settings.capacity
    if capacity.cpu_units is None and capacity.memory_mib is None:
        yield None
        return
    run_root = ensure_private_directory(Path(settings.run_root))
    lock = os.open(run_root / "capacity.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        size = size_of(definition)
        sizes = [run.read_size() for run in RunDirectory.list_all(settings.runs)]
        taken = sum(cpu for cpu, _ in sizes), sum(memory for _, memory in sizes)
        for reason, unit, wanted, used, most, setting in (
            ("RESOURCE:CPU", "CPU units", size[0], taken[0], capacity.cpu_units, "cpu_units"),
            ("RESOURCE:MEMORY", "MiB", size[1], taken[1], capacity.memory_mib, "memory_mib"),
        ):
            if most is not None and used + wanted > most:
                raise CapacityExceeded(
                    reason,
                    f"the task wants {wanted} {unit}, and {used} of this host's {most} "
                    f"(capacity.{setting}) are taken; stop a task, or wait for one to end",
                )
        yield size
    finally:
        os.close(lock)
