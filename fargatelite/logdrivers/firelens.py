"""`awsfirelens`: records to the task's router in Fluentd's forward protocol, over its Unix socket.

As on ECS: tag `<container>-firelens-<task id>`, and a record of container_id, container_name,
source and log; a line beyond 16 KiB comes in pieces with partial_message, partial_id,
partial_ordinal and partial_last. The ecs_* members are added by the router (firelens_config.py).

The socket lies in a directory that the router writes, and what lies there may be anything: it is
opened without following links and must be a socket, since a link there would lead this process to a
socket of the host.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from fargatelite.errors import LogEndpointUnavailable
from fargatelite.logdrivers.driver import BLOCKING_BYTES, Buffer, LogRecord, Message, Request
from fargatelite.taskdef.log_options import DEFAULT_FIRELENS_EVENTS, buffer_bytes

__all__ = ["Firelens", "encode_forward", "firelens_tag"]

MAX_REQUEST_EVENTS = 1000
MAX_REQUEST_BYTES = 2**20
_TIMEOUT_S = 5.0
_EVENT_TIME = 0  # extension type of the forward protocol: seconds and nanoseconds, big-endian


def firelens_tag(container: str, task_id: str) -> str:
    """What the router's sections match."""
    return f"{container}-firelens-{task_id}"


def encode_forward(tag: str, entries: Sequence[bytes]) -> bytes:
    """A message of forward mode: [tag, [[time, record], ...]]; each entry is encoded already."""
    return (
        b"\x92"
        + msgspec.msgpack.encode(tag)
        + b"\xdd"
        + struct.pack(">I", len(entries))
        + b"".join(entries)
    )


class Firelens:
    """See the module; `sockets` is the directory that the router has at /var/run."""

    name = "awsfirelens"

    def __init__(
        self,
        options: dict[str, str],
        container: str,
        task_id: str,
        container_id: str,
        sockets: Path,
    ) -> None:
        self._tag = firelens_tag(container, task_id)
        self._container = container
        self._container_id = container_id
        self._sockets = sockets
        self._socket: socket.socket | None = None
        is_blocking = options.get("mode") == "blocking"
        self.buffer = Buffer(
            is_blocking=is_blocking,
            max_bytes=BLOCKING_BYTES if is_blocking else buffer_bytes(options),
            max_messages=int(options.get("log-driver-buffer-limit", DEFAULT_FIRELENS_EVENTS)),
        )
        self.request = Request(
            max_bytes=MAX_REQUEST_BYTES, max_messages=MAX_REQUEST_EVENTS, linger_s=0.0
        )
        self.hold_s = 0.0

    def open(self) -> None:
        """Nothing: the router starts first, and may take its time to listen."""

    def shape(self, record: LogRecord) -> list[Message]:
        """One entry a record, encoded."""
        fields: dict[str, Any] = {
            "container_id": self._container_id,
            "container_name": self._container,
            "source": record.stream,
            "log": record.text.decode("utf-8", "replace"),
        }
        if record.partial is not None:
            # Strings, as Docker's driver sends them.
            fields["partial_message"] = "true"
            fields["partial_id"] = record.partial.id
            fields["partial_ordinal"] = str(record.partial.ordinal)
            fields["partial_last"] = "true" if record.partial.is_last else "false"
        seconds, nanoseconds = divmod(record.at_ns, 10**9)
        time = msgspec.msgpack.Ext(_EVENT_TIME, struct.pack(">II", seconds, nanoseconds))
        return [Message(record.at_ns, msgspec.msgpack.encode([time, fields]))]

    def flush(self) -> list[Message]:
        """Nothing is kept back."""
        return []

    def cut(self, queue: Sequence[Message]) -> int:
        """1,000 entries, or 1 MiB."""
        total = 0
        for count, message in enumerate(islice(queue, MAX_REQUEST_EVENTS)):
            total += len(message.body)
            if total > MAX_REQUEST_BYTES:
                return max(1, count)
        return min(len(queue), MAX_REQUEST_EVENTS)

    def send(self, messages: list[Message]) -> int:
        """One message; after a failure on a new connection, from its beginning."""
        data = encode_forward(self._tag, [message.body for message in messages])
        try:
            if self._socket is None:
                self._socket = self._connect()
            self._socket.sendall(data)
        except OSError as error:
            self.close()
            raise LogEndpointUnavailable(
                f"the router's socket fluent.sock: {error.strerror or error}"
            ) from error
        return 0

    def _connect(self) -> socket.socket:
        with contextlib.ExitStack() as stack:
            directory = os.open(
                self._sockets, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            stack.callback(os.close, directory)
            found = os.open(
                "fluent.sock", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
            stack.callback(os.close, found)
            if not stat.S_ISSOCK(os.fstat(found).st_mode):
                raise OSError("is no socket")
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            connection.settimeout(_TIMEOUT_S)
            try:
                connection.connect(f"/proc/self/fd/{found}")
            except OSError:
                connection.close()
                raise
            return connection

    def close(self) -> None:
        """Closes the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
