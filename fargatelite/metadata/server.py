"""The HTTP server of all metadata endpoints of this process: one thread, one selector.

Each task has a listening socket inside its own network namespace, and what arrives there is asked
of that task's `Source` only. Clients are hostile containers: sizes, time, connections and requests
per task are bounded, nothing blocks, and a task that floods its endpoint slows only itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fargatelite.descriptors import move_high
from fargatelite.errors import NetworkFailed
from fargatelite.metadata.faults import FaultInjector, NetworkFaults
from fargatelite.metadata.routes import Source, answer
from fargatelite.metadata.wire import Answer, BadRequest, parse_request
from fargatelite.network.namespaces import run_in_namespace
from fargatelite.network.nft import open_context
from fargatelite.network.slot import METADATA_ADDRESS
from fargatelite.network.task_rules import METADATA_LISTEN_PORT, TaskRules

__all__ = ["Handle", "MetadataServer", "OpenedEndpoint", "open_endpoint"]

_logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 16
"""Per task. More wait in the kernel's queue, which is the task's own loss."""

_EXCHANGE_S = 5.0
"""From a connection to the last byte of its answer; the agent's read timeout."""

_REQUESTS_PER_S, _BURST = 40.0, 60.0
"""The agent's defaults (contract 5)."""

_TOO_MANY = Answer(status=429, body="You have reached maximum request limit.")
_CHUNK_BYTES = 65536


class OpenedEndpoint:
    """The socket and the rule that leads to it, in a task's namespace: clients wait in the kernel's
    queue until a server has it. Made by `open_endpoint`."""

    def __init__(self, listener: socket.socket, rules: TaskRules) -> None:
        self.listener = listener
        self.rules = rules

    def close(self) -> None:
        """Of one that no server has got."""
        self.listener.close()
        self.rules.close()


def _listen_and_open_context() -> tuple[socket.socket, list[Any]]:
    listener = _listen()
    try:
        return listener, [open_context()]
    except BaseException:
        listener.close()
        raise


def open_endpoint(netns_fd: int) -> OpenedEndpoint:
    """Opens a task's endpoint inside its namespace.

    The namespace's lo must be up and have `METADATA_ADDRESS` (network.connect gives it).
    Raises: NetworkFailed; HostUnsupported without libnftables.
    """
    rules = TaskRules(netns_fd)
    try:
        listener, opened = run_in_namespace(netns_fd, _listen_and_open_context)
        listener = socket.socket(fileno=move_high(listener.detach()))
        try:
            rules.redirect_metadata(opened)
        except BaseException:
            listener.close()
            raise
    except BaseException:
        rules.close()
        raise
    return OpenedEndpoint(listener, rules)


class Handle:
    """A task's endpoint while it is served. Made by `MetadataServer.add_task`."""

    def __init__(self, opened: OpenedEndpoint, source: Source) -> None:
        self._listener = opened.listener
        self._rules = opened.rules
        self._source = source
        self._connections: set[_Connection] = set()
        self._is_listening = False
        self._tokens = _BURST
        self._filled_at_s = time.monotonic()

    def _take_token(self, now_s: float) -> bool:
        """Whether one more request is within the rate."""
        grown = (now_s - self._filled_at_s) * _REQUESTS_PER_S
        self._tokens = min(_BURST, self._tokens + grown)
        self._filled_at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Connection:
    """One client: bytes that came, then bytes that go."""

    def __init__(self, peer: socket.socket, handle: Handle, deadline_s: float) -> None:
        self.peer = peer
        self.handle = handle
        self.deadline_s = deadline_s
        self.received = bytearray()
        self.unsent: memoryview | None = None


class MetadataServer:
    """Serves tasks until `close`. `add_task` and `remove_task` may be called by any thread.

    Descriptors are closed on exec; a child forked without exec must not use the server.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        # Not a socket: its send needs memory, and one that is lost is waited for without end.
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._orders: deque[Callable[[], None]] = deque()
        self._closing = threading.Event()
        self._handles: set[Handle] = set()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="metadata", daemon=True)
        self._thread.start()

    def add_task(
        self, opened: OpenedEndpoint, make_source: Callable[[FaultInjector], Source]
    ) -> Handle:
        """Serves a task's endpoint, the server's from now on; it answers when this returns.

        `make_source` gets the injector of the namespace's faults, which the source of a task
        with enableFaultInjection gives back.
        """
        try:
            handle = Handle(opened, make_source(NetworkFaults(opened.rules)))
        except BaseException:
            opened.close()
            raise
        try:
            self._run(lambda: self._open(handle))
        except BaseException:
            opened.close()
            raise
        return handle

    def remove_task(self, handle: Handle) -> None:
        """Closes the endpoint and its connections; may be repeated. It is closed on return."""
        self._run(lambda: self._shut(handle))
        # Here and not in the server's thread: it waits for an RCU grace period.
        handle._rules.close()

    def close(self) -> None:
        """Ends every endpoint and the thread; may be repeated."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for handle in list(self._handles):
            self._shut(handle)
            handle._rules.close()
        self._selector.close()
        os.close(self._wake)

    def _run(self, order: Callable[[], None]) -> None:
        """Has the server's thread do `order` and waits for it; once closed there is nothing to."""
        if self._closing.is_set():
            return
        done = threading.Event()
        failures: list[Exception] = []

        def obey() -> None:
            try:
                order()
            except Exception as error:  # noqa: BLE001  raised again in the caller's thread
                failures.append(error)
            finally:
                done.set()

        self._orders.append(obey)
        os.eventfd_write(self._wake, 1)
        while not done.wait(0.5):
            if not self._thread.is_alive():
                return
        if failures:  # of one task: the server goes on for the others
            raise failures[0]

    def _serve(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select(self._next_deadline_s()):
                if key.fileobj == self._wake:
                    self._obey()
                elif isinstance(key.data, Handle):
                    self._accept(key.data)
                elif isinstance(key.data, _Connection):
                    self._progress(key.data)
            self._expire()

    def _obey(self) -> None:
        os.eventfd_read(self._wake)
        while self._orders:
            self._orders.popleft()()

    def _next_deadline_s(self) -> float | None:
        deadlines = [c.deadline_s for handle in self._handles for c in handle._connections]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _expire(self) -> None:
        now_s = time.monotonic()
        for handle in self._handles:
            for connection in list(handle._connections):
                if connection.deadline_s <= now_s:
                    self._drop(connection)

    def _open(self, handle: Handle) -> None:
        self._handles.add(handle)
        self._listen_again(handle)

    def _listen_again(self, handle: Handle) -> None:
        if not handle._is_listening and handle in self._handles:
            self._selector.register(handle._listener, selectors.EVENT_READ, handle)
            handle._is_listening = True

    def _stop_listening(self, handle: Handle) -> None:
        if handle._is_listening:
            self._selector.unregister(handle._listener)
            handle._is_listening = False

    def _shut(self, handle: Handle) -> None:
        self._stop_listening(handle)
        self._handles.discard(handle)
        for connection in list(handle._connections):
            self._drop(connection)
        handle._listener.close()

    def _accept(self, handle: Handle) -> None:
        if handle not in self._handles:
            return  # removed by an order of the same round
        try:
            peer, _ = handle._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # EMFILE: try again when a connection has ended
            _logger.warning(
                "cannot accept a metadata connection: %s", os.strerror(error.errno or 0)
            )
            if handle._connections:
                self._stop_listening(handle)
            return
        peer.setblocking(False)
        connection = _Connection(peer, handle, time.monotonic() + _EXCHANGE_S)
        handle._connections.add(connection)
        self._selector.register(peer, selectors.EVENT_READ, connection)
        if len(handle._connections) >= _MAX_CONNECTIONS:
            self._stop_listening(handle)

    def _drop(self, connection: _Connection) -> None:
        handle = connection.handle
        if connection in handle._connections:
            handle._connections.discard(connection)
            self._selector.unregister(connection.peer)
            connection.peer.close()
            self._listen_again(handle)

    def _progress(self, connection: _Connection) -> None:
        if connection not in connection.handle._connections:
            return  # dropped earlier in this round
        try:
            if connection.unsent is None:
                self._receive(connection)
            else:
                self._send(connection)
        except BlockingIOError:
            return
        except OSError:  # the client went away
            self._drop(connection)

    def _receive(self, connection: _Connection) -> None:
        data = connection.peer.recv(_CHUNK_BYTES)
        connection.received += data
        handle = connection.handle
        try:
            request = parse_request(bytes(connection.received))
            if request is None:
                if not data:
                    self._drop(connection)
                return
            if handle._take_token(time.monotonic()):
                answered = answer(handle._source, request)
            else:
                answered = _TOO_MANY
        except BadRequest as bad:
            answered = bad.answer if handle._take_token(time.monotonic()) else _TOO_MANY
        except Exception:
            # A bug behind one task's Source must not end the endpoints of all others.
            _logger.exception("a metadata request failed")
            answered = Answer(status=500, body="internal error")
        connection.unsent = memoryview(answered.encode())
        self._selector.modify(connection.peer, selectors.EVENT_WRITE, connection)
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        assert connection.unsent is not None
        sent = connection.peer.send(connection.unsent)
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent:
            # Or bytes that the client sent after the request would turn the close into a reset,
            # which takes the answer with it.
            with contextlib.suppress(OSError):
                connection.peer.shutdown(socket.SHUT_WR)
                connection.peer.recv(_CHUNK_BYTES)
            self._drop(connection)


def _listen() -> socket.socket:
    """The endpoint's socket, in the calling thread's network namespace."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # A supervisor that adopts the task finds the last one's connections in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((METADATA_ADDRESS, METADATA_LISTEN_PORT))
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise NetworkFailed(
            f"cannot open the metadata endpoint on {METADATA_ADDRESS}:{METADATA_LISTEN_PORT}: "
            f"{error.strerror}; is the address on the namespace's lo?",
            errno=error.errno,
        ) from error
    return listener
