"""Launches that have not begun: for want of capacity, or because enough others are in preparation.

A task that waits here is PROVISIONING, has its run directory and nothing else; it may be stopped at
any moment. One line per supervisor; what it does happens on the supervisor's loop, and looks at the
line of all processes (`runtime.capacity`) on its pool, because they wait for a lock.

Nobody polls: a look follows when a run directory goes (a task has ended), when a ticket is removed,
and when one is closed (inotify(7), IN_CLOSE_WRITE): its process has ended, however it did.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from fargatelite.runtime.capacity import (
    Ticket,
    count_ahead,
    first_bound,
    is_next,
    lack_of,
    line_of,
    locked,
)
from fargatelite.runtime.supervise import Supervised, Supervisor

__all__ = ["LaunchLine", "get_line"]

MAX_PREPARING = 32
"""Launches of one process that are between their first step and the end of their pulls: twice the
pool's threads. With more, the first of a thousand would start when the last had been provisioned,
and all of them would be half made meanwhile."""

_LOOK_AGAIN_NS = 20_000_000
"""After something happened there is a second look: the kernel tells that a file was closed just
before it lets go of its lock (__fput: fsnotify_close, then locks_remove_file)."""


class Launching(Supervised, Protocol):
    """What the line asks of a task; on the loop."""

    def begin_preparing(self) -> None: ...
    def waits(self, reason: str, ahead: int) -> None: ...
    def not_admitted(self, reason: str) -> None: ...


class _Wait:
    """A ticket of this process and whose it is."""

    def __init__(self, task: Launching, ticket: Ticket) -> None:
        self.task = task
        self.ticket = ticket
        self.cancel_time_out: Callable[[], None] | None = None
        self._is_settled = False
        self._lock = threading.Lock()

    def settle(self) -> bool:
        """Whether it is the caller who decides what becomes of it: the first one does."""
        with self._lock:
            was_settled, self._is_settled = self._is_settled, True
            return not was_settled


class LaunchLine:
    """See the module. Methods are called on the supervisor's loop."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._settings = supervisor.settings
        self._waits: dict[Launching, _Wait] = {}
        self._watches: list[int] = []
        self._is_looking = False
        self._has_news = False
        self._line: deque[Launching] = deque()
        self._preparing: set[Launching] = set()

    def enter(self, task: Launching, ticket: Ticket | None, wait_s: float) -> None:
        """Has the task prepared when it is its turn; with a ticket, within `wait_s` seconds."""
        if ticket is None:
            self._prepare(task)
            return
        wait = self._waits[task] = _Wait(task, ticket)
        self._watch()
        self._supervisor.pool.submit(lambda: self._tell(wait), task)
        wait.cancel_time_out = self._supervisor.set_timer(
            time.time_ns() + int(wait_s * 1e9),
            lambda: self._supervisor.pool.submit(lambda: self._refuse(wait), task),
            task,
        )
        self._look()

    def leave(self, task: Launching) -> bool:
        """The task is prepared, or is to end: others have its place. Whether it had not begun."""
        wait = self._forget(task)
        if wait is not None:
            if wait.settle():
                wait.ticket.give_back()
            return True
        if task in self._line:
            self._line.remove(task)
            return True
        self._preparing.discard(task)
        while self._line and len(self._preparing) < MAX_PREPARING:
            follower = self._line.popleft()
            self._preparing.add(follower)
            self._supervisor.post(follower.begin_preparing, follower)
        return False

    def _forget(self, task: Launching) -> _Wait | None:
        wait = self._waits.pop(task, None)
        if wait is not None:
            if wait.cancel_time_out is not None:
                wait.cancel_time_out()
            if not self._waits:
                for watch in self._watches:
                    self._supervisor.unwatch_directory(watch)
                self._watches.clear()
        return wait

    def _prepare(self, task: Launching) -> None:
        if len(self._preparing) < MAX_PREPARING:
            self._preparing.add(task)
            task.begin_preparing()
        else:
            self._line.append(task)

    # ---- capacity ----

    def _watch(self) -> None:
        if self._watches:
            return
        from inotify_simple import flags

        for path, mask in (
            (line_of(self._settings), flags.DELETE | flags.CLOSE_WRITE),
            (self._settings.runs, flags.MOVED_FROM),
        ):
            self._watches.append(
                self._supervisor.watch_directory(path, self._happened, mask=int(mask))
            )

    def _happened(self) -> None:
        self._look()
        self._supervisor.set_timer(time.time_ns() + _LOOK_AGAIN_NS, self._look)

    def _look(self) -> None:
        """One look at a time; what happens during it is looked at after it."""
        self._has_news = True
        if self._waits and not self._is_looking:
            waits = sorted(self._waits.values(), key=lambda wait: wait.ticket.path.name)
            self._supervisor.pool.submit(lambda: self._admit(waits))
            self._is_looking, self._has_news = True, False

    def _looked(self) -> None:
        self._is_looking = False
        if self._has_news:
            self._look()

    def _admit(self, waits: list[_Wait]) -> None:
        """On the pool: those who are first in line, as long as there is room."""
        try:
            for wait in waits:
                with locked(self._settings):
                    if not is_next(self._settings, wait.ticket):
                        return
                    if lack_of(self._settings, wait.ticket.size) is not None:
                        return
                    if not wait.settle():
                        return
                    try:
                        # In this order: one that is both counted and in line is counted.
                        wait.ticket.run.write_size(*wait.ticket.size)
                    except OSError as error:
                        wait.task.fault(error)
                    finally:
                        wait.ticket.give_back()
                self._supervisor.post(lambda wait=wait: self._admitted(wait), wait.task)  # type: ignore[misc]
        finally:
            self._supervisor.post(self._looked)

    def _admitted(self, wait: _Wait) -> None:
        if self._forget(wait.task) is not None:  # else it was stopped at this moment
            self._prepare(wait.task)

    def _tell(self, wait: _Wait) -> None:
        """On the pool: how it stands at the beginning."""
        reason, _, ahead = self._stand_of(wait)

        def tell() -> None:
            if wait.task in self._waits:
                wait.task.waits(reason, ahead)

        self._supervisor.post(tell, wait.task)

    def _stand_of(self, wait: _Wait) -> tuple[str, str, int]:
        with locked(self._settings):
            lack = lack_of(self._settings, wait.ticket.size)
            ahead = count_ahead(self._settings, wait.ticket)
        if lack is None:
            return first_bound(self._settings), "others wait ahead of the task", ahead
        return lack.reason, lack.text, ahead

    def _refuse(self, wait: _Wait) -> None:
        """On the pool: its time is over."""
        if not wait.settle():
            return
        reason, text, ahead = self._stand_of(wait)
        wait.ticket.give_back()
        said = f"{reason}: no room within the time that it may wait: {text}"
        if ahead:
            said += f"; {ahead} launches are ahead of it"

        def tell() -> None:
            if self._forget(wait.task) is not None:
                wait.task.not_admitted(said)

        self._supervisor.post(tell, wait.task)


_lines: dict[Supervisor, LaunchLine] = {}
_lock = threading.Lock()


def get_line(supervisor: Supervisor) -> LaunchLine:
    """The line of a supervisor of this process."""
    with _lock:
        line = _lines.get(supervisor)
        if line is None:
            line = _lines[supervisor] = LaunchLine(supervisor)
        return line


# A child's supervisors are its own.
os.register_at_fork(after_in_child=_lines.clear)
