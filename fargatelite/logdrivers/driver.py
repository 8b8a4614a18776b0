"""What a log driver is: it shapes records into messages, and sends messages.

A driver knows no threads, files, clocks or queues; the shipper (shipper.py) has those, calls each
driver from one thread at a time, and `send` alone may block. So a driver is what its endpoint
wants, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

__all__ = ["Buffer", "LogDriver", "LogRecord", "Message", "Partial", "Request"]

BLOCKING_BYTES = 2**20
"""Kept in memory of a container whose writes wait anyway: one request's worth."""


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a line beyond `lines.MAX_LINE_BYTES`; `ordinal` counts from 1."""

    id: str
    ordinal: int
    is_last: bool


class LogRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A line without its newline, or a piece of a long one."""

    at_ns: int
    stream: str
    text: bytes
    partial: Partial | None = None


class Message(NamedTuple):
    """What is sent for a record: `body` in the driver's own form."""

    at_ns: int
    body: bytes


class Buffer(msgspec.Struct, frozen=True, kw_only=True):
    """What waits in memory at most. Beyond it a record is dropped, or, `is_blocking`, not read."""

    is_blocking: bool
    max_bytes: int
    max_messages: int = 2**62


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What one request takes at most, and how long to wait for it to fill."""

    max_bytes: int
    max_messages: int
    linger_s: float


class LogDriver(Protocol):
    """One container's way out. See the module for who calls what."""

    name: str
    buffer: Buffer
    request: Request
    hold_s: float
    """How long `shape` may keep back what could be the beginning of a longer message."""

    def open(self) -> None:
        """Before the container starts: makes and checks what its endpoint needs.

        Raises: LogDriverFailed, which stops the task.
        """

    def shape(self, record: LogRecord) -> list[Message]:
        """The messages that this record completes."""

    def flush(self) -> list[Message]:
        """What `shape` has kept back."""

    def cut(self, queue: Sequence[Message]) -> int:
        """How many messages of the front go into one request; at least one of a queue that is not
        empty."""

    def send(self, messages: list[Message]) -> int:
        """Sends one request; how many of its messages the endpoint has refused.

        Raises: LogEndpointUnavailable when the same may succeed later; LogDriverFailed when these
            messages never will.
        """

    def close(self) -> None:
        """Lets go of connections."""
