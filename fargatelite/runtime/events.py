"""What happens to a task, as typed records: for `on_event`, and appended to the run directory."""

from __future__ import annotations

import msgspec

__all__ = ["ContainerEvent", "Event", "PullEvent", "TaskEvent", "encode_event"]


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


Event = TaskEvent | ContainerEvent | PullEvent


def encode_event(event: Event) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(event)
