"""What is written down of a task, live (run directory) and stopped (data root), and found again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from fargatelite import names
from fargatelite.errors import StateCorrupt, TaskAmbiguous, TaskNotFound
from fargatelite.network.slot import PortPublication, Slot
from fargatelite.rundir import RunDirectory, replace_file
from fargatelite.runtime.describe import TaskFacts, describe_task
from fargatelite.runtime.events import LogsDroppedEvent
from fargatelite.runtime.task import TaskState
from fargatelite.runtime.trace import Phase
from fargatelite.sandbox.seccomp_profile import SeccompProfile
from fargatelite.security_groups import SecurityGroup
from fargatelite.settings import Settings
from fargatelite.taskdef.load import load_recorded

__all__ = [
    "RECORD_VERSION",
    "TaskRecord",
    "find_record",
    "list_records",
    "read_record",
    "write_stopped",
]

RECORD_VERSION = 1


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it is written to state.json and, once stopped, to record.json.

    `definition` is in the wire form of DescribeTaskDefinition, after overrides.
    """

    version: int = RECORD_VERSION
    state: TaskState
    definition: dict[str, Any]
    facts: TaskFacts
    slot: Slot | None = None
    publish: tuple[PortPublication, ...] = ()
    pull: Literal["always", "missing", "never"] = "always"
    address: str | None = None
    groups: tuple[SecurityGroup, ...] = ()
    trace: bool = False
    seccomp: SeccompProfile | None = None
    network_mbit: int = 0
    credentials_id: str | None = None
    """What containers were told; nobody but this host's root reads it here."""
    phases: tuple[Phase, ...] = ()
    leftovers: tuple[str, ...] = ()
    logs_dropped: tuple[LogsDroppedEvent, ...] = ()
    """The last one of each container that has lost some."""

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return self.state.task_id

    def describe(self) -> dict[str, Any]:
        """The task in the shape of DescribeTasks."""
        return describe_task(self.state, load_recorded(self.definition), self.facts, self.phases)


def encode_record(record: TaskRecord) -> bytes:
    """The file's bytes."""
    return msgspec.json.encode(record)


def decode_record(data: bytes, path: Path) -> TaskRecord:
    """The record in a file's bytes.

    Raises: StateCorrupt naming the file, and both versions when it is of another one.
    """
    try:
        version = msgspec.json.decode(data).get("version")
        if version != RECORD_VERSION:
            raise StateCorrupt(
                f"{path} is of version {version}, this reads {RECORD_VERSION}; "
                "use the fargatelite that wrote it",
                path=path,
            )
        return msgspec.json.decode(data, type=TaskRecord)
    except (msgspec.MsgspecError, AttributeError) as error:
        raise StateCorrupt(f"{path}: {error}", path=path) from error


def record_path(settings: Settings, task_id: str) -> Path:
    """Where the record of a stopped task lies."""
    return settings.records / task_id / "record.json"


def write_stopped(settings: Settings, record: TaskRecord) -> None:
    """Keeps the record of a stopped task; durable before the run directory goes."""
    path = record_path(settings, record.task_id)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, encode_record(record), sync=True)


def read_record(settings: Settings, task_id: str) -> TaskRecord:
    """A task's record: the stopped one if there is one, else the live one.

    Raises: TaskNotFound; StateCorrupt.
    """
    path = record_path(settings, task_id)
    with contextlib.suppress(FileNotFoundError):
        return decode_record(path.read_bytes(), path)
    run = RunDirectory(settings.runs, names.parse_task_id(task_id))
    data = run.read_state()
    if data is None:
        # It may have stopped between the two looks.
        with contextlib.suppress(FileNotFoundError):
            return decode_record(path.read_bytes(), path)
        raise TaskNotFound(f"no task {task_id}; `fargatelite ps --all` lists them")
    return decode_record(data, run.path)


def _task_ids(settings: Settings) -> set[str]:
    ids = {run.task_id for run in RunDirectory.list_all(settings.runs)}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(settings.records):
            with contextlib.suppress(StateCorrupt):
                ids.add(names.parse_task_id(name))
    return {str(task_id) for task_id in ids}


def list_records(settings: Settings, *, stopped: bool = False) -> Iterator[TaskRecord]:
    """Records of live tasks, and with `stopped` of all, oldest first."""
    live = {str(run.task_id) for run in RunDirectory.list_all(settings.runs)}
    found = []
    for task_id in _task_ids(settings) if stopped else live:
        with contextlib.suppress(TaskNotFound):
            found.append(read_record(settings, task_id))
    yield from sorted(found, key=lambda record: record.state.created_at_ns)


def find_record(settings: Settings, text: str) -> TaskRecord:
    """The task that an id, a unique beginning of one, or an ARN names.

    Raises: TaskNotFound; TaskAmbiguous with the candidates.
    """
    wanted = names.arn_task_id(text)
    matches = sorted(task_id for task_id in _task_ids(settings) if task_id.startswith(wanted))
    if not wanted or not matches:
        raise TaskNotFound(f"no task {text!r}; `fargatelite ps --all` lists them")
    if wanted in matches:
        matches = [wanted]
    if len(matches) > 1:
        raise TaskAmbiguous(
            f"{text!r} fits {len(matches)} tasks "
            f"({', '.join(match[:12] for match in matches[:5])}); give more characters"
        )
    return read_record(settings, matches[0])
