"""Gathers what a task's report shows: record, ledger, events, bill."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fargatelite.errors import StateCorrupt
from fargatelite.meter.ledger import list_segments, read_task_ledger
from fargatelite.meter.rollup import parse_rollup, rollup_path
from fargatelite.meter.usage import measure
from fargatelite.report.data import (
    Moment,
    PhaseBar,
    ReportData,
    curves_of,
    curves_of_minutes,
)
from fargatelite.runtime.bills import bill_task
from fargatelite.runtime.events import ContainerEvent, LogsDroppedEvent, TaskEvent, decode_event
from fargatelite.runtime.events import events_path as path_of_events
from fargatelite.runtime.record import TaskRecord
from fargatelite.runtime.usage import ledger_of
from fargatelite.settings import Settings

__all__ = ["gather_report"]


def gather_report(settings: Settings, record: TaskRecord) -> ReportData:
    """All that the page shows; up to now while the task runs.

    Raises: ConfigurationInvalid for an unknown price; StateCorrupt for an unusable ledger.
    """
    state, wire = record.state, record.definition
    begin_ns = state.created_at_ns
    end_ns = state.stopped_at_ns or time.time_ns()
    path = ledger_of(settings, record.task_id)
    is_by_minute = False
    if list(list_segments(path)):
        ledger = read_task_ledger(path)
        used, curves = measure(ledger), curves_of(ledger, begin_ns)
    elif rollup_path(path).exists():
        rolled = parse_rollup(rollup_path(path).read_bytes(), str(rollup_path(path)))
        used, curves, is_by_minute = rolled.total, curves_of_minutes(rolled.minutes, begin_ns), True
    else:
        used, curves = None, ()
    stepped_ns = sum(step.value_ns for step in used.clock_steps) if used is not None else 0
    return ReportData(
        task_id=record.task_id,
        family=str(wire["family"]),
        revision=int(wire.get("revision") or 0),
        status=str(state.last_status),
        stop_reason=": ".join(
            text for text in (state.stop_code, state.stopped_reason) if text is not None
        ),
        cluster=record.facts.cluster,
        region=record.facts.region,
        begin_at_ns=begin_ns,
        length_ns=max(1, end_ns - begin_ns - stepped_ns),
        cpu_units=int(wire.get("cpu") or 0),
        memory_mib=int(wire.get("memory") or 0),
        curves=curves,
        moments=tuple(sorted(_moments(settings, record), key=lambda moment: moment.at_ns)),
        phases=tuple(
            PhaseBar(name=item.name, started_us=item.started_us, duration_us=item.duration_us)
            for item in record.phases
        ),
        bill=bill_task(settings, record).bill,
        used=used,
        is_by_minute=is_by_minute,
        tags=record.facts.tags,
    )


def _moments(settings: Settings, record: TaskRecord) -> Iterator[Moment]:
    state = record.state
    begin_ns = state.created_at_ns
    for at_ns, text in (
        (state.pull_started_at_ns, "pull started: billing begins"),
        (state.pull_stopped_at_ns, "pull finished"),
    ):
        if at_ns is not None:
            yield Moment(at_ns=at_ns - begin_ns, subject="task", text=text, kind="pull")
    try:
        lines = path_of_events(settings.records, record.task_id).read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    healths: dict[str, str] = {}
    for line in lines:
        try:
            event = decode_event(line)
        except StateCorrupt:
            continue  # a torn last line of a host that lost power: the rest is worth showing
        if isinstance(event, TaskEvent):
            yield Moment(
                at_ns=event.at_ns - begin_ns,
                subject="task",
                text=" ".join(filter(None, (event.last_status, event.stopped_reason))),
                kind="stop" if event.last_status in ("STOPPING", "STOPPED") else "other",
            )
        elif isinstance(event, ContainerEvent):
            yield from _container_moments(event, begin_ns, healths)
        elif isinstance(event, LogsDroppedEvent):
            yield Moment(
                at_ns=event.at_ns - begin_ns,
                subject=event.container,
                text=f"log lost: {event.records} records, {event.reason}",
                kind="other",
            )


def _container_moments(
    event: ContainerEvent, begin_ns: int, healths: dict[str, str]
) -> Iterator[Moment]:
    at_ns, name = event.at_ns - begin_ns, event.container
    if event.health_status != healths.get(name, "UNKNOWN"):
        healths[name] = event.health_status
        yield Moment(at_ns=at_ns, subject=name, text=event.health_status, kind="health", weight=2)
        if event.exit_code is None and event.last_status == "RUNNING":
            return
    is_oom = "OutOfMemory" in (event.reason or "")
    code = f"exit code {event.exit_code}" if event.exit_code is not None else None
    yield Moment(
        at_ns=at_ns,
        subject=name,
        text=" ".join(filter(None, (event.last_status, code, event.reason))),
        kind="oom" if is_oom else "stop" if event.last_status == "STOPPED" else "start",
        weight=2 if is_oom or event.last_status in ("RUNNING", "STOPPED") else 1,
    )
