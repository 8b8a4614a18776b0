"""What happens to a task, as typed records: for `on_event`, and appended to `events.jsonl` beside
the task's record, where `fargatelite events` reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fargatelite.errors import StateCorrupt

__all__ = [
    "ContainerEvent",
    "Event",
    "LogsDroppedEvent",
    "PullEvent",
    "StateChange",
    "TaskEvent",
    "WaitingEvent",
    "append_events",
    "decode_event",
    "events_path",
]


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="task"):
    """The task reached `last_status` (contract 3.1); `version` grows with every change."""

    task_id: str
    at_ns: int
    last_status: str
    desired_status: str
    version: int
    stop_code: str | None = None
    stopped_reason: str | None = None


class ContainerEvent(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="container"):
    """A container's status or health changed."""

    task_id: str
    at_ns: int
    container: str
    last_status: str
    health_status: str
    exit_code: int | None = None
    reason: str | None = None


class PullEvent(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="pull"):
    """Progress of a pull; not kept in the run directory. Bytes are compressed ones; `phase` is
    `download`, `done`, `exists` or `image`."""

    task_id: str
    at_ns: int
    reference: str
    layer: str
    done_bytes: int
    total_bytes: int
    phase: str


class StateChange(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="stateChange"):
    """The same as EventBridge delivers it: an `ECS Task State Change` whose `detail` is the whole
    task (contract 8.8). One for each step in which anything of the task or a container changed."""

    task_id: str
    at_ns: int
    event: dict[str, Any]


class LogsDroppedEvent(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="logsDropped"
):
    """A container's log did not reach its endpoint in full. Totals since the task started:
    `records` with `bytes`, and `unread_bytes` of the log file that were rotated away unread."""

    task_id: str
    at_ns: int
    container: str
    log_driver: str
    records: int
    bytes: int
    unread_bytes: int
    reason: str


class WaitingEvent(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="waiting"):
    """The launch waits for capacity: what it lacks, in ECS' word (RESOURCE:CPU, RESOURCE:MEMORY),
    and how many wait ahead of it."""

    task_id: str
    at_ns: int
    reason: str
    ahead: int


Event = TaskEvent | ContainerEvent | PullEvent | StateChange | LogsDroppedEvent | WaitingEvent


def events_path(records: Path, task_id: str) -> Path:
    """Where a task's events lie until `gc` removes its record; a line of JSON each, appended."""
    return records / task_id / "events.jsonl"


def append_events(records: Path, task_id: str, events: Sequence[Event]) -> None:
    """Appends events, all in one write. Raises: OSError."""
    fd = os.open(
        events_path(records, task_id),
        os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        os.write(fd, b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    finally:
        os.close(fd)


def decode_event(line: bytes) -> Event:
    """What `append_events` wrote. Raises: StateCorrupt."""
    try:
        decoded: Event = msgspec.json.decode(line, type=Event)
    except msgspec.MsgspecError as error:
        raise StateCorrupt(f"event {line[:80]!r}: {error}") from error
    return decoded
