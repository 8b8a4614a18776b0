"""`fargatelite stats`."""

from __future__ import annotations

import contextlib
import sys
import time

import click

from fargatelite.cli.tables import format_bytes, is_terminal, print_json, print_table
from fargatelite.errors import StateCorrupt
from fargatelite.meter.latest import Latest, read_latest
from fargatelite.meter.ledger import Sample
from fargatelite.runtime.record import TaskRecord, find_record, list_records
from fargatelite.runtime.usage import ledger_of, read_stats
from fargatelite.settings import Settings

Figures = dict[str, dict[str, dict[str, int]]]
_SORTS = ("cpu", "memory", "name")
_COLUMNS = ("TASK ID", "CONTAINER", "CPU", "VCPU", "HELD", "MEMORY", "OF TASK", "PEAK", "PIDS")


class _Reading:
    """The kernel's figures of all tasks at one moment, and what only the ledger has."""

    def __init__(self, settings: Settings, records: list[TaskRecord]) -> None:
        self.at_s = time.monotonic()
        self.figures: Figures = {record.task_id: read_stats(record) for record in records}
        self.latest: dict[str, Latest] = {}
        for record in records:
            # A task that is being provisioned has none yet.
            with contextlib.suppress(FileNotFoundError, StateCorrupt):
                self.latest[record.task_id] = read_latest(ledger_of(settings, record.task_id))

    def sample(self, task_id: str, name: str) -> Sample | None:
        """The newest of a group; None before its first."""
        latest = self.latest.get(task_id)
        return latest.samples.get(name or None) if latest is not None else None


def _held(before: Sample | None, after: Sample | None) -> str:
    """The share of the last periods in which a limit held the group back."""
    if before is None or after is None or after.periods is None or before.periods is None:
        return "-"
    periods = after.periods - before.periods
    if periods <= 0 or after.generation != before.generation:
        return "-"
    held = (after.throttled_periods or 0) - (before.throttled_periods or 0)
    return f"{held / periods * 100:.0f}%"


def _task_rows(
    record: TaskRecord, before: _Reading, after: _Reading
) -> tuple[float, int, list[tuple[str, ...]]]:
    """VCPUs and bytes of the task, and its rows."""
    # EC2's tasks need no size.
    vcpus = int(str(record.definition.get("cpu", 0))) / 1024
    limit = int(str(record.definition.get("memory", 0))) * 2**20
    rows: list[tuple[str, ...]] = []
    busy, memory = 0.0, 0
    for name, values in after.figures[record.task_id].items():
        earlier = before.figures.get(record.task_id, {}).get(name)
        if earlier is None:
            continue
        spent_ns = values["cpu_usage_ns"] - earlier["cpu_usage_ns"]
        used = max(0, spent_ns) / 1e9 / (after.at_s - before.at_s)
        if not name:
            busy, memory = used, values["memory_bytes"]
        sample = after.sample(record.task_id, name)
        pids = sample.pids if sample is not None else None
        rows.append(
            (
                record.task_id[:12],
                name or "(task)",
                f"{used / vcpus * 100:.1f}%" if vcpus else "-",
                f"{used:.2f}",
                _held(before.sample(record.task_id, name), sample),
                format_bytes(values["memory_bytes"]),
                f"{values['memory_bytes'] / limit * 100:.1f}%" if limit else "-",
                format_bytes(values["memory_peak_bytes"]),
                "-" if pids is None else str(pids),
            )
        )
    return busy, memory, rows


def _rows(
    records: list[TaskRecord], before: _Reading, after: _Reading, sort: str
) -> list[tuple[str, ...]]:
    tasks = [_task_rows(record, before, after) for record in records]
    if sort == "cpu":
        tasks.sort(key=lambda task: -task[0])
    elif sort == "memory":
        tasks.sort(key=lambda task: -task[1])
    else:
        tasks.sort(key=lambda task: task[2][:1])
    return [row for _, _, rows in tasks for row in rows]


@click.command("stats")
@click.argument("task", required=False)
@click.option("--no-stream", is_flag=True, help="One reading, then end.")
@click.option("--sort", type=click.Choice(_SORTS), default="cpu", help="Which task comes first.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def command(settings: Settings, task: str | None, no_stream: bool, sort: str, output: str) -> None:
    """Show CPU and memory of running tasks, once a second; percentages are of the task's size.

    \b
    Example:
      fargatelite stats --no-stream
    """

    def find() -> list[TaskRecord]:
        return [find_record(settings, task)] if task else list(list_records(settings))

    before = _Reading(settings, find())
    while True:
        time.sleep(1)  # the length of the window that is measured, not a wait for something
        records = find()
        after = _Reading(settings, records)
        if output == "json":
            print_json({"tasks": after.figures})
        else:
            if not no_stream and is_terminal(sys.stdout):
                sys.stdout.write("\x1b[H\x1b[J")
            print_table(_COLUMNS, _rows(records, before, after, sort), right=_COLUMNS[2:])
        if no_stream or not is_terminal(sys.stdout):
            return
        before = after
