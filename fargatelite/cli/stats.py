"""`fargatelite stats`."""

from __future__ import annotations

import sys
import time

import click

from fargatelite.cli.tables import format_bytes, is_terminal, print_json, print_table
from fargatelite.runtime.record import TaskRecord, find_record, list_records
from fargatelite.runtime.usage import read_stats
from fargatelite.settings import Settings

Sample = dict[str, dict[str, dict[str, int]]]


def _read(records: list[TaskRecord]) -> tuple[float, Sample]:
    return time.monotonic(), {record.task_id: read_stats(record) for record in records}


def _rows(
    records: list[TaskRecord], before: tuple[float, Sample], after: tuple[float, Sample]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    seconds = after[0] - before[0]
    for record in records:
        # EC2's tasks need no size.
        vcpus = int(str(record.definition.get("cpu", 0))) / 1024
        limit = int(str(record.definition.get("memory", 0))) * 2**20
        for name, values in after[1][record.task_id].items():
            earlier = before[1][record.task_id].get(name)
            if earlier is None:
                continue
            used = (values["cpu_usage_ns"] - earlier["cpu_usage_ns"]) / 1e9 / seconds
            rows.append(
                (
                    record.task_id[:12],
                    name or "(task)",
                    f"{used / vcpus * 100:.1f}%" if vcpus else "-",
                    f"{used:.2f}",
                    format_bytes(values["memory_bytes"]),
                    f"{values['memory_bytes'] / limit * 100:.1f}%" if limit else "-",
                    format_bytes(values["memory_peak_bytes"]),
                )
            )
    return rows


@click.command("stats")
@click.argument("task", required=False)
@click.option("--no-stream", is_flag=True, help="One reading, then end.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def command(settings: Settings, task: str | None, no_stream: bool, output: str) -> None:
    """Show CPU and memory of running tasks, once a second; percentages are of the task's size.

    \b
    Example:
      fargatelite stats --no-stream
    """
    columns = ("TASK ID", "CONTAINER", "CPU", "VCPU", "MEMORY", "OF TASK", "PEAK")
    while True:
        records = [find_record(settings, task)] if task else list(list_records(settings))
        before = _read(records)
        time.sleep(1)  # the length of the window that is measured, not a wait for something
        after = _read(records)
        if output == "json":
            print_json({"tasks": after[1]})
        else:
            if not no_stream and is_terminal(sys.stdout):
                sys.stdout.write("\x1b[H\x1b[J")
            print_table(columns, _rows(records, before, after), right=columns[2:])
        if no_stream or not is_terminal(sys.stdout):
            return
