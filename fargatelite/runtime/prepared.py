"""Sandboxes made before a task asks for one: slot, shim, storage, group, network.

A prepared sandbox is the run directory of a task to come, with an id of its own and no state yet.
The task that takes it takes the id, so every name derives from it as ever; nothing is used twice.
One that its process leaves behind is a task that was lost before it was recorded: whoever looks
removes it (`close.end_lost`).

Off by default (`prepared_sandboxes` = 0): each costs a shim, an empty file system and an address.
"""

from __future__ import annotations

import collections
import logging
import os
import select
import threading
from pathlib import Path
from typing import NamedTuple

from fargatelite import names
from fargatelite.cgroups.cgroup import CgroupLimits
from fargatelite.errors import FargateliteError
from fargatelite.rundir import RunDirectory, ensure_private_directory
from fargatelite.runtime import launch
from fargatelite.runtime.close import end_lost
from fargatelite.runtime.supervise import Supervisor, get_supervisor
from fargatelite.runtime.trace import Timeline
from fargatelite.settings import Settings, load_settings
from fargatelite.taskdef.fields import TaskDefinition

__all__ = ["Sandbox", "SandboxPool", "get_pool", "prepare_sandboxes"]

logger = logging.getLogger(__name__)

_STORAGE_GIB = 20  # what a task has that asks for no more (contract 4.3)
_NO_LIMITS = CgroupLimits()  # the task's own are set when it comes


class Sandbox(NamedTuple):
    """A prepared one; whoever has it removes it or hands it to a task."""

    run: RunDirectory
    launched: launch.Launched


class SandboxPool:
    """The sandboxes that one supervisor keeps ready. Methods may be called from any thread."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._settings = supervisor.settings
        self._ready: collections.deque[Sandbox] = collections.deque()
        self._busy = 0  # being made or removed
        self._is_ended = False
        self._changed = threading.Condition()
        supervisor.add(self)

    def take(self, definition: TaskDefinition, address: str | None) -> Sandbox | None:
        """One for a task of this definition; None when there is none that fits."""
        fits = (
            address is None
            and definition.network_mode == "awsvpc"
            and definition.ephemeral_storage_gib == _STORAGE_GIB
        )
        while fits:
            with self._changed:
                if not self._ready:
                    return None
                found = self._ready.popleft()
                if _is_alive(found):
                    return found
                self._busy += 1
            self._supervisor.pool.submit(lambda found=found: self._remove(found))  # type: ignore[misc]
        return None

    def fill(self) -> None:
        """Makes what is missing, beside the caller."""
        with self._changed:
            wanted = 0 if self._is_ended else self._settings.prepared_sandboxes
            missing = max(0, wanted - len(self._ready) - self._busy)
            self._busy += missing
        for _ in range(missing):
            self._supervisor.pool.submit(self._make)

    def wait_filled(self, timeout_s: float | None) -> bool:
        """Waits until nothing is being made; whether as many are ready as are wanted."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, timeout_s)
            return len(self._ready) >= self._settings.prepared_sandboxes

    def _make(self) -> None:
        settings = self._settings
        made: Sandbox | None = None
        try:
            ensure_private_directory(Path(settings.data_root))
            run = RunDirectory.create(settings.runs, names.new_task_id())
            try:
                launched = launch.make_sandbox(
                    settings, run, Timeline(), limits=_NO_LIMITS, network_mode="awsvpc",
                    storage_gib=_STORAGE_GIB,
                )  # fmt: skip
            except BaseException:
                end_lost(settings, run)
                raise
            made = Sandbox(run, launched)
        except (FargateliteError, OSError) as error:
            # The next task tries by itself, and its failure is its own to tell.
            logger.warning("no sandbox prepared: %s", error)
        finally:
            with self._changed:
                is_late = self._is_ended
                if made is not None and not is_late:
                    self._ready.append(made)
                if made is None or not is_late:
                    self._busy -= 1
                self._changed.notify_all()
        if made is not None and is_late:
            self._remove(made)

    def _remove(self, sandbox: Sandbox) -> None:
        try:
            sandbox.launched.abort()
            for failure in end_lost(self._settings, sandbox.run):
                logger.error("prepared sandbox %s: %s", sandbox.run.task_id, failure)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def give_back(self, sandbox: Sandbox) -> None:
        """Removes one that was taken for a task that did not begin."""
        with self._changed:
            self._busy += 1
        self._remove(sandbox)

    # ---- as the supervisor sees it (runtime.supervise.Supervised) ----

    def stop_for_exit(self) -> None:
        """Removes all, and makes no more."""
        with self._changed:
            self._is_ended = True
            left = list(self._ready)
            self._ready.clear()
            self._busy += len(left)
        for sandbox in left:
            self._supervisor.pool.submit(lambda sandbox=sandbox: self._remove(sandbox))  # type: ignore[misc]

    def wait_finished(self, timeout_s: float | None) -> bool:
        """Waits until none is left, after `stop_for_exit`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout_s)

    def fault(self, error: Exception) -> None:
        """A job of the pool failed, which has told so; tasks make their own sandboxes."""
        self.stop_for_exit()


def _is_alive(sandbox: Sandbox) -> bool:
    """Whether its shim lives: a prepared one has nothing to say, so what can be read is its end."""
    poll = select.poll()
    poll.register(sandbox.launched.shim, select.POLLIN)
    return not poll.poll(0)


_pools: dict[Supervisor, SandboxPool] = {}
_lock = threading.Lock()


def get_pool(supervisor: Supervisor) -> SandboxPool:
    """The pool of a supervisor of this process."""
    with _lock:
        pool = _pools.get(supervisor)
        if pool is None:
            pool = _pools[supervisor] = SandboxPool(supervisor)
        return pool


def prepare_sandboxes(settings: Settings | None = None, *, timeout_s: float | None = None) -> bool:
    """Makes as many sandboxes ready as the setting `prepared_sandboxes` says, for the tasks that
    this process will run; whether they are ready within `timeout_s` seconds. `run_task` keeps their
    number from then on, beginning with the first task also without this call.

    Raises: ConfigurationInvalid for settings that cannot be read.
    """
    pool = get_pool(get_supervisor(settings or load_settings()))
    pool.fill()
    return pool.wait_filled(timeout_s)


def _forget_after_fork() -> None:
    # They are the parent's; descriptors of them that a child has keep nothing alive but a shim
    # whose parent is gone too.
    _pools.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
