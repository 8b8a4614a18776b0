"""The loop: one thread per process and settings runs all tasks that this process supervises.

A selector over shim sockets and inotify, a heap of timers, and a queue for what other threads hand
in. What blocks (pulls, mounts, groups, removal) goes to a small pool of daemon threads and comes
back through the queue. Callbacks of users run on a thread of their own, in order, so a slow one
delays other callbacks and nothing else.
"""

from __future__ import annotations

import atexit
import errno
import heapq
import itertools
import logging
import os
import queue
import selectors
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fargatelite.errors import HostUnsupported
from fargatelite.settings import Settings

if TYPE_CHECKING:
    from inotify_simple import INotify

__all__ = ["Supervisor", "get_supervisor"]

logger = logging.getLogger(__name__)

_POOL_THREADS = 16  # blocked in pulls or removals; they cost nothing while idle

Job = Callable[[], None]


class Supervised(Protocol):
    """What the loop asks of a task."""

    def stop_for_exit(self) -> None: ...
    def wait_finished(self, timeout_s: float | None) -> bool: ...
    def fault(self, error: Exception) -> None: ...


def _guarded(job: Job, task: Supervised | None) -> None:
    # The one place for it (style, "Errors"): a fault in one task must not end the others, and must
    # not leave its own waited for without end.
    try:
        job()
    except Exception as error:
        logger.exception("a job of the supervisor failed")
        if task is not None:
            task.fault(error)


class _Pool:
    """Daemon threads for blocking work, started as needed.

    Not concurrent.futures: that refuses work once the interpreter has begun to exit, which is when
    tasks must be stopped and removed.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0

    def submit(self, job: Job, task: Supervised | None = None) -> None:
        """Runs `job` on some thread; what it raises ends `task`."""
        with self._lock:
            self._jobs.put(lambda: _guarded(job, task))
            if self._idle < self._jobs.qsize() and self._threads < _POOL_THREADS:
                name = f"fargatelite-pool-{self._threads + 1}"
                try:
                    threading.Thread(target=self._work, name=name, daemon=True).start()
                except RuntimeError:
                    if not self._threads:  # else one of those will come to it
                        self._jobs.get()
                        raise
                else:
                    self._threads += 1

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job = self._jobs.get()
            with self._lock:
                self._idle -= 1
            job()


class Supervisor:
    """See the module. All methods may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = _Pool()
        self._inbox: queue.SimpleQueue[tuple[Job, Supervised | None]] = queue.SimpleQueue()
        self._callbacks: queue.SimpleQueue[tuple[Job, ...]] = queue.SimpleQueue()
        self._inotify: INotify | None = None
        self._directories: dict[int, tuple[Job, Supervised | None]] = {}
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, (self._woken, None))
        self._timers: list[tuple[int, int, list[Job | None], Supervised | None]] = []
        self._sequence = itertools.count()
        self._tasks: set[Supervised] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="fargatelite-supervisor", daemon=True).start()
        threading.Thread(target=self._call_back, name="fargatelite-events", daemon=True).start()

    # ---- from any thread ----

    def post(self, job: Job, task: Supervised | None = None) -> None:
        """Runs `job` on the loop's thread, after what was posted before; what it raises ends
        `task`, here and below."""
        self._inbox.put((job, task))
        os.eventfd_write(self._wake, 1)

    def call_back(self, *jobs: Job) -> None:
        """Runs a user's callbacks on the callback thread."""
        self._callbacks.put(jobs)

    def add(self, task: Supervised) -> None:
        """Registers a task that must be over before the interpreter ends."""
        with self._lock:
            self._tasks.add(task)

    def discard(self, task: Supervised) -> None:
        """Forgets a task that is over."""
        with self._lock:
            self._tasks.discard(task)

    def stop_all(self) -> None:
        """Stops every task of this process and waits; at interpreter exit."""
        with self._lock:
            tasks = list(self._tasks)
        for task in tasks:
            task.stop_for_exit()
        for task in tasks:
            task.wait_finished(None)

    # ---- on the loop's thread only ----

    def watch(self, fileobj: object, job: Job, task: Supervised | None = None) -> None:
        """Calls `job` whenever `fileobj` is readable."""
        self._selector.register(fileobj, selectors.EVENT_READ, (job, task))  # type: ignore[arg-type]

    def unwatch(self, fileobj: object) -> None:
        """Ends `watch`; before the descriptor is closed."""
        self._selector.unregister(fileobj)  # type: ignore[arg-type]

    def watch_directory(
        self, path: Path, job: Job, task: Supervised | None = None, *, mask: int | None = None
    ) -> int:
        """Calls `job` whenever a file was moved into a directory, or whatever else of inotify(7)
        `mask` has happened; returns what ends it.

        One inotify instance for all, since a user has only 128 (max_user_instances): it goes with
        its last watch, so that a process may have had many supervisors.
        """
        from inotify_simple import INotify, flags

        if self._inotify is None:
            self._inotify = INotify(nonblocking=True)
            self.watch(self._inotify, self._look_into_directories)
        watch: int = self._inotify.add_watch(
            os.fspath(path), int(flags.MOVED_TO) if mask is None else mask
        )
        self._directories[watch] = (job, task)
        return watch

    def unwatch_directory(self, watch: int) -> None:
        """Ends `watch_directory`."""
        assert self._inotify is not None
        del self._directories[watch]
        try:
            self._inotify.rm_watch(watch)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it went with its directory
                raise
        if not self._directories:
            self.unwatch(self._inotify)
            # Closing waits for a grace period of the kernel (8 ms): not on the thread of all tasks.
            self.pool.submit(self._inotify.close)
            self._inotify = None

    def _look_into_directories(self) -> None:
        if self._inotify is None:
            return  # its last watch ended by what was done just before
        for watch in {event.wd for event in self._inotify.read(timeout=0)}:
            found = self._directories.get(watch)
            if found is not None:
                _guarded(*found)

    def set_timer(self, at_ns: int, job: Job, task: Supervised | None = None) -> Job:
        """Calls `job` once at this wall time (ns); returns what cancels it.

        The wait is measured on the monotonic clock from now, so a clock step does not stretch it.
        """
        delay = max(0, at_ns - time.time_ns())
        entry: list[Job | None] = [job]
        due_ns = time.monotonic_ns() + delay
        heapq.heappush(self._timers, (due_ns, next(self._sequence), entry, task))

        def cancel() -> None:
            entry[0] = None

        return cancel

    def _woken(self) -> None:
        os.eventfd_read(self._wake)

    def _timeout_s(self) -> float | None:
        while self._timers and self._timers[0][2][0] is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, (self._timers[0][0] - time.monotonic_ns()) / 1e9)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(self._timeout_s()):
                _guarded(*key.data)
            while not self._inbox.empty():
                _guarded(*self._inbox.get())
            now = time.monotonic_ns()
            while self._timers and self._timers[0][0] <= now:
                _, _, (job,), task = heapq.heappop(self._timers)
                if job is not None:
                    _guarded(job, task)

    def _call_back(self) -> None:
        while True:
            for job in self._callbacks.get():
                _guarded(job, None)


_supervisors: dict[Settings, Supervisor] = {}
_supervisors_lock = threading.Lock()


def get_supervisor(settings: Settings) -> Supervisor:
    """The supervisor of this process for these settings, started on first use.

    Raises: HostUnsupported when the host has no thread for it.
    """
    with _supervisors_lock:
        supervisor = _supervisors.get(settings)
        if supervisor is None:
            try:
                supervisor = _supervisors[settings] = Supervisor(settings)
            except RuntimeError as error:
                raise HostUnsupported(
                    f"cannot supervise tasks: {error}: see ulimit -u and pids.max",
                    errno=errno.EAGAIN,
                ) from error
            atexit.register(supervisor.stop_all)
        return supervisor


def _forget_after_fork() -> None:
    # Threads do not survive fork(2); a child starts its own when it runs tasks.
    _supervisors.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
