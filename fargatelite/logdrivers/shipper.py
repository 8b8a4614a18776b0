"""Brings logs from their files to their drivers: one thread per process reads for all containers,
and a few send.

The thread waits on inotify(7), on results of sends and on deadlines. It reads a log as it grows,
lets the driver shape records, and keeps messages up to the driver's buffer. Beyond it a record is
dropped and counted; in blocking mode the log is not read on, the shim is not told that it was read,
and so the container's writes wait. A container has one request on its way at a time, so that
order holds; a request that fails is made again, with back-off, as long as the task lives and for a
bounded time after.

How far a log has been sent is told as a place in it, for whoever takes the task over when this
process is killed: every message of what lies before that place has come back from the endpoint, or
been counted as dropped. What lies behind may have arrived too, and is sent again.

Nothing is dropped silently: each container's `Dropped` says what, and why.
"""

from __future__ import annotations

import logging
import os
import queue
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fargatelite.errors import LogDriverFailed
from fargatelite.logdrivers.driver import LogDriver, LogRecord, Message
from fargatelite.logdrivers.lines import LineAssembler
from fargatelite.logdrivers.local import LogTail

if TYPE_CHECKING:
    from inotify_simple import INotify

__all__ = ["END", "Dropped", "Shipment", "Shipper", "get_shipper"]

logger = logging.getLogger(__name__)

HOLD_BYTES = 256 * 1024
"""Of a log unread at which a blocking container's writes wait (plan operation log_hold)."""

END = -1
"""Of a log as it is: what was written before is not sent."""

_SENDERS = 8  # threads; each is busy for as long as one request takes
_READ_BYTES = 2**20  # of one log before the others have their turn
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 10.0
_TELL_S = 0.05  # until a shim that was behind is told again
_FAULT_S = 10.0
_REPORT_S = 10.0  # between two reports of what a container has lost
_TELL_SENT_S = 1.0  # between two tellings of how far a log has been sent
_NEVER = float("inf")


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """What of a container's log did not reach its endpoint, in all since the task started.

    `records` and `bytes` had been read; `unread_bytes` of the log file were rotated away before.
    """

    records: int = 0
    bytes: int = 0
    unread_bytes: int = 0
    reason: str = ""

    @property
    def is_any(self) -> bool:
        """Whether there is something to tell."""
        return bool(self.records or self.unread_bytes)


class _SentPlace:
    """How far a log has been sent. Messages are settled in the order in which they were kept."""

    def __init__(self, place: int, tell: Callable[[int], None] | None) -> None:
        self.kept = 0
        """Messages that have been put into the queue."""
        self.due_at = _NEVER
        self._tell = tell
        self._settled = 0
        self._marks: deque[tuple[int, int]] = deque()  # (kept, place), both growing
        self._place = self._told = place
        self._tell_at = 0.0

    def mark(self, place: int) -> None:
        """The messages that were kept so far are those of all that lies before `place`."""
        if self._marks and self._marks[-1][0] == self.kept:
            self._marks.pop()
        self._marks.append((self.kept, place))
        self.settle(0)

    def settle(self, count: int) -> None:
        """The next `count` messages have been sent, or are given up."""
        self._settled += count
        while self._marks and self._marks[0][0] <= self._settled:
            self._place = max(self._place, self._marks.popleft()[1])

    def tell(self, label: str, now: float) -> None:
        """Tells what is new, now and then; sets `due_at`."""
        self.due_at = _NEVER
        if self._tell is None or self._place == self._told:
            return
        if now < self._tell_at:
            self.due_at = self._tell_at
            return
        self._tell_at = now + _TELL_SENT_S
        self._told = self._place
        try:
            self._tell(self._place)
        except OSError as error:
            logger.warning("%s: how far its log was sent: %s", label, error)


class Shipment:
    """One container's log on its way. `done` is set when nothing more will be sent.

    All but `done` and `dropped` belongs to the shipper's thread.
    """

    def __init__(
        self,
        label: str,
        path: Path,
        driver: LogDriver,
        *,
        on_dropped: Callable[[Dropped], None],
        tell_read: Callable[[int], None] | None,
        tell_sent: Callable[[int], None] | None = None,
        begin_at: int = 0,
    ) -> None:
        """`label` names the container in log messages; `tell_read(count)`, for a driver that
        blocks, tells the shim how many bytes were read, and raises OSError. `tell_sent(place)` is
        told how far the log has been sent, and raises OSError; `begin_at` is such a place, or
        END."""
        self.label = label
        self.path = path
        self.driver = driver
        self.dropped = Dropped()
        self.done = threading.Event()
        self.due_at = 0.0
        self._tail = LogTail(label, path)
        if begin_at == END:
            for _ in self._tail.read():
                pass
        elif begin_at:
            self._tail.go_to(begin_at)
        self._sent = _SentPlace(self._tail.parsed_place, tell_sent)
        self._lines = LineAssembler()
        self._on_dropped = on_dropped
        self._tell_read = tell_read
        # A shim that was told of more than is behind this reader takes no harm.
        self._told = 0 if begin_at == END else self._tail.place
        self._queue: deque[Message] = deque()
        self._queue_bytes = 0
        self._sending: list[Message] = []
        self._linger_until = _NEVER
        self._flush_at = _NEVER
        self._retry_at = 0.0
        self._attempt = 0
        self._report_at = 0.0
        self._is_reported = True
        self._deadline: float | None = None
        self._is_read = False  # to its end, after the container's
        self._failure = ""

    # ---- what happens ----

    def end(self, deadline: float) -> None:
        """The container writes no more; what is not sent at `deadline` (monotonic) is dropped."""
        if self._deadline is None:
            self._deadline = deadline
            self._retry_at = 0.0
            self._attempt = 0

    def sent(self, refused: int, failure: LogDriverFailed | None, now: float) -> None:
        """A request came back."""
        messages, self._sending = self._sending, []
        if self.done.is_set():
            return  # the deadline was first, and has counted them
        if failure is not None and failure.retryable:
            self._queue.extendleft(reversed(messages))
            if not self._attempt:
                logger.warning("%s: %s: %s", self.label, self.driver.name, failure)
            self._failure = str(failure)
            self._retry_at = now + min(_LAST_RETRY_S, _FIRST_RETRY_S * 2**self._attempt)
            self._attempt = min(self._attempt + 1, 16)
            return
        self._queue_bytes -= sum(len(message.body) for message in messages)
        self._sent.settle(len(messages))
        self._attempt, self._retry_at, self._failure = 0, 0.0, ""
        if failure is not None:
            self._drop(messages, str(failure))
        elif refused:
            self._drop(messages[:refused], "refused by the endpoint as too old or too new")

    # ---- what is to be done ----

    def step(self, now: float, submit: Callable[[list[Message]], None]) -> None:
        """Reads, keeps, hands over what is due; sets `due_at`."""
        has_more = self._read(now)
        if self._flush_at <= now or (self._is_read and self._flush_at != _NEVER):
            self._flush_at = _NEVER
            self._keep(self.driver.flush(), now)
            self._mark_sent(self._tail.parsed_place)
        send_at = self._send_at()
        if not self._sending and self._queue and send_at <= now:
            count = self.driver.cut(self._queue)
            self._sending = [self._queue.popleft() for _ in range(count)]
            submit(list(self._sending))
            self._linger_until = now + self.driver.request.linger_s
        is_late = self._deadline is not None and now >= self._deadline
        is_over = is_late or (self._is_read and not self._queue and not self._sending)
        if is_late:
            self._give_up()
        if not self._is_reported and (now >= self._report_at or is_over):
            self._is_reported = True
            self._report_at = now + _REPORT_S
            self._on_dropped(self.dropped)
        self._sent.tell(self.label, now)
        self.due_at = self._next(now, has_more)
        if is_over:
            self._tail.close()
            self.done.set()  # last: whoever waits finds all told

    def _give_up(self) -> None:
        reason = self._failure or "not sent in time after the container's end"
        if not self._is_read:
            for line in self._tail.read():
                for record in self._lines.feed(line):
                    self._drop(self.driver.shape(record), reason)
            for record in self._lines.flush():
                self._drop(self.driver.shape(record), reason)
        self._drop([*self.driver.flush(), *self._sending, *self._queue], reason)
        self._queue.clear()

    def _next(self, now: float, has_more: bool) -> float:
        due = [self._flush_at, self._deadline or _NEVER, self._sent.due_at]
        if has_more:
            due.append(now)
        if self._queue and not self._sending:
            due.append(self._send_at())
        if not self._is_reported:
            due.append(self._report_at)
        if self._tell_read is not None and self._tail.place != self._told:
            due.append(now + _TELL_S)
        return min(due)

    def _send_at(self) -> float:
        request = self.driver.request
        is_full = len(self._queue) >= request.max_messages or self._queue_bytes >= request.max_bytes
        return max(self._retry_at, 0.0 if is_full or self._is_read else self._linger_until)

    def _read(self, now: float) -> bool:
        """Whether there is more to read at once."""
        if self._is_read:
            return False
        buffer, begin = self.driver.buffer, self._tail.place
        while self._tail.place - begin < _READ_BYTES:
            if buffer.is_blocking and self._queue_bytes >= buffer.max_bytes:
                self._tell()
                return False  # again when a request has come back
            missed, first = self._tail.missed_bytes, self._tail.parsed_place
            was_between, kept = self._lines.is_between_lines, self._sent.kept
            lines = self._tail.read_some()
            if self._tail.missed_bytes > missed:
                self._count(0, 0, self._tail.missed_bytes - missed, "rotated away before it was "
                            "read: the container writes faster than this host reads")  # fmt: skip
            if lines is None:
                self._is_read = self._deadline is not None
                if self._is_read:
                    self._take(self._lines.flush(), now)
                self._tell()
                return False
            for line in lines:
                self._take(self._lines.feed(line), now)
            if self._flush_at == _NEVER:
                self._mark_sent(self._tail.parsed_place)
            elif was_between and self._sent.kept > kept:
                # What the driver keeps back began in what was just read: it has given out all that
                # came before.
                self._sent.mark(first)
        self._tell()
        return True

    def _mark_sent(self, place: int) -> None:
        if self._lines.is_between_lines:
            self._sent.mark(place)

    def _take(self, records: Iterable[LogRecord], now: float) -> None:
        for record in records:
            self._keep(self.driver.shape(record), now)
            if self.driver.hold_s:
                self._flush_at = now + self.driver.hold_s

    def _keep(self, messages: list[Message], now: float) -> None:
        buffer = self.driver.buffer
        for message in messages:
            size = len(message.body)
            has_room = (
                self._queue_bytes + size <= buffer.max_bytes
                and len(self._queue) + len(self._sending) < buffer.max_messages
            )
            # One that is larger than the whole buffer goes into an empty one, as Docker has it.
            if not (has_room or buffer.is_blocking or not self._queue_bytes):
                self._drop([message], self._failure or "the buffer is full")
                continue
            if not self._queue:
                self._linger_until = now + self.driver.request.linger_s
            self._queue.append(message)
            self._queue_bytes += size
            self._sent.kept += 1

    def _tell(self) -> None:
        if self._tell_read is None or self._tail.place == self._told:
            return
        try:
            self._tell_read(self._tail.place - self._told)
        except BlockingIOError:
            return  # told with the next
        except OSError:
            pass  # the shim is gone, and nobody waits
        self._told = self._tail.place

    def _drop(self, messages: list[Message], reason: str) -> None:
        if messages:
            self._count(len(messages), sum(len(item.body) for item in messages), 0, reason)

    def _count(self, records: int, size: int, unread: int, reason: str) -> None:
        self.dropped = Dropped(
            records=self.dropped.records + records,
            bytes=self.dropped.bytes + size,
            unread_bytes=self.dropped.unread_bytes + unread,
            reason=reason,
        )
        self._is_reported = False


class _Senders:
    """A few daemon threads, started as needed (not concurrent.futures, which refuses work once the
    interpreter has begun to exit: that is when tasks end)."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._idle = 0

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._jobs.put(job)
            if self._idle < self._jobs.qsize() and self._threads < _SENDERS:
                self._threads += 1
                threading.Thread(target=self._work, name="fargatelite-send", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job = self._jobs.get()
            with self._lock:
                self._idle -= 1
            job()


class Shipper:
    """See the module. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._inotify: INotify | None = None
        self._shipments: set[Shipment] = set()
        self._ready: set[Shipment] = set()
        self._watches: dict[Path, tuple[int, set[Shipment]]] = {}
        self._senders = _Senders()
        threading.Thread(target=self._run, name="fargatelite-shipper", daemon=True).start()

    def add(self, shipment: Shipment) -> None:
        """Follows a log, from its beginning; its directory exists."""
        self._post(lambda: self._add(shipment))

    def end(self, shipments: Iterable[Shipment], timeout_s: float) -> None:
        """Sends what these containers, which have ended, still have; waits for that, and gives up
        after `timeout_s`: what is not sent then is dropped and reported."""
        ending = list(shipments)
        deadline = time.monotonic() + timeout_s
        self._post(lambda: self._end(ending, deadline))
        for shipment in ending:
            # The bound is for a fault of ours: no task may wait for its logs without end.
            if not shipment.done.wait(max(0.0, deadline - time.monotonic()) + _FAULT_S):
                logger.error("%s: the shipper did not end it", shipment.label)

    def _post(self, job: Callable[[], None]) -> None:
        self._inbox.put(job)
        os.eventfd_write(self._wake, 1)

    # ---- on the thread ----

    def _add(self, shipment: Shipment) -> None:
        from inotify_simple import INotify, flags

        if self._inotify is None:
            self._inotify = INotify(nonblocking=True)
            self._selector.register(self._inotify, selectors.EVENT_READ)
        directory = shipment.path.parent
        watch, below = self._watches.get(directory, (-1, set()))
        if watch < 0:
            watch = self._inotify.add_watch(os.fspath(directory), flags.MODIFY | flags.CREATE)
        below.add(shipment)
        self._watches[directory] = (watch, below)
        self._shipments.add(shipment)
        self._ready.add(shipment)

    def _end(self, shipments: list[Shipment], deadline: float) -> None:
        for shipment in shipments:
            if shipment in self._shipments:  # else it is over already, which may be asked twice
                shipment.end(deadline)
                self._ready.add(shipment)

    def _look(self) -> None:
        assert self._inotify is not None
        touched = {event.wd for event in self._inotify.read(timeout=0)}
        is_lossy = -1 in touched  # IN_Q_OVERFLOW: some events were not kept
        for watch, below in self._watches.values():
            if is_lossy or watch in touched:
                self._ready |= below

    def _forget(self, shipment: Shipment) -> None:
        assert self._inotify is not None
        self._shipments.discard(shipment)
        self._ready.discard(shipment)
        watch, below = self._watches[shipment.path.parent]
        below.discard(shipment)
        if not below:
            del self._watches[shipment.path.parent]
            try:
                self._inotify.rm_watch(watch)
            except OSError as error:
                logger.debug("%s: %s", shipment.label, error)  # it went with its directory
        self._senders.submit(shipment.driver.close)

    def _run(self) -> None:
        while True:
            due = min((shipment.due_at for shipment in self._shipments), default=_NEVER)
            timeout_s = None if due == _NEVER else max(0.0, due - time.monotonic())
            if self._ready:
                timeout_s = 0.0
            for key, _ in self._selector.select(timeout_s):
                if key.fileobj == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._look()
            while not self._inbox.empty():
                self._inbox.get()()
            now = time.monotonic()
            ready, self._ready = self._ready, set()
            ready |= {shipment for shipment in self._shipments if shipment.due_at <= now}
            for shipment in ready:
                self._step(shipment, now)

    def _step(self, shipment: Shipment, now: float) -> None:
        try:
            shipment.step(now, lambda messages: self._submit(shipment, messages))
        except Exception:
            # A fault in one container's driver must not end the logs of all others, nor leave
            # anybody waiting for its end.
            logger.exception("%s: the log driver failed", shipment.label)
            shipment.done.set()
        if shipment.done.is_set():
            self._forget(shipment)

    def _submit(self, shipment: Shipment, messages: list[Message]) -> None:
        def send() -> None:
            refused, failure = 0, None
            try:
                refused = shipment.driver.send(messages)
            except LogDriverFailed as error:
                failure = error
            except Exception as error:
                logger.exception("%s: the log driver failed", shipment.label)
                failure = LogDriverFailed(f"{type(error).__name__}: {error}")
            self._post(lambda: self._sent(shipment, refused, failure))

        self._senders.submit(send)

    def _sent(self, shipment: Shipment, refused: int, failure: LogDriverFailed | None) -> None:
        shipment.sent(refused, failure, time.monotonic())
        if shipment in self._shipments:
            self._ready.add(shipment)


_shipper: Shipper | None = None
_shipper_lock = threading.Lock()


def get_shipper() -> Shipper:
    """This process's shipper, started on first use."""
    global _shipper
    with _shipper_lock:
        if _shipper is None:
            _shipper = Shipper()
        return _shipper


def _forget_after_fork() -> None:
    # Threads do not survive fork(2); a child starts its own.
    global _shipper
    _shipper = None


os.register_at_fork(after_in_child=_forget_after_fork)
