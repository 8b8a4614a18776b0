"""`fargatelite logs`."""

from __future__ import annotations

import datetime
import sys

import click

from fargatelite.cli.following import End
from fargatelite.errors import TaskNotFound
from fargatelite.runtime.logs import LogFollower, LogLine
from fargatelite.runtime.record import find_record
from fargatelite.settings import Settings


class _Printer:
    def __init__(self, width: int, timestamps: bool) -> None:
        self._width = width
        self._timestamps = timestamps
        self._open: tuple[str, str] | None = None

    def show(self, line: LogLine) -> None:
        """Bytes go through unchanged: this is data."""
        out = sys.stdout.buffer if line.stream == "stdout" else sys.stderr.buffer
        key = (line.container, line.stream)
        if self._open != key:
            if self._open is not None:
                out.write(b"\n")
            if self._timestamps:
                at = datetime.datetime.fromtimestamp(line.at_ns / 1e9, datetime.UTC)
                out.write(at.isoformat(timespec="milliseconds").encode() + b" ")
            if self._width:
                out.write(f"{line.container:<{self._width}} | ".encode())
        out.write(line.text + (b"" if line.is_partial else b"\n"))
        out.flush()
        self._open = key if line.is_partial else None


@click.command("logs")
@click.argument("task")
@click.option("-c", "--container", help="Only this container.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task stops.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written (UTC).")
@click.pass_obj
def command(
    settings: Settings, task: str, container: str | None, follow: bool, timestamps: bool
) -> None:
    """Show what a task's containers wrote, also after it has stopped.

    \b
    Example:
      fargatelite logs 3f2a --follow
    """
    record = find_record(settings, task)
    known = tuple(state.name for state in record.state.containers)
    if container is not None and container not in known:
        raise TaskNotFound(
            f"task {record.task_id[:12]} has no container {container!r}; it has {', '.join(known)}"
        )
    chosen = (container,) if container is not None else known
    printer = _Printer(0 if len(chosen) == 1 else max(map(len, chosen)), timestamps)
    (settings.records / record.task_id / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
    follower = LogFollower(settings.records, record.task_id, chosen)
    try:
        if not follow:
            for line in follower.read_new():
                printer.show(line)
            return
        end = End(settings, record.task_id)
        for line in follower.follow(end.is_there.is_set, end.wake):
            printer.show(line)
        if end.failure is not None:
            raise end.failure
    finally:
        follower.close()
