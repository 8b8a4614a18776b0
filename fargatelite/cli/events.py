"""`fargatelite events`."""

from __future__ import annotations

import datetime
import json
import sys
from typing import Literal

import click

from fargatelite.cli.following import End
from fargatelite.cli.tables import make_printable
from fargatelite.runtime.events import ContainerEvent, Event, StateChange, TaskEvent, WaitingEvent
from fargatelite.runtime.history import EventFollower
from fargatelite.runtime.record import find_record
from fargatelite.settings import Settings


def _describe(event: Event) -> str | None:
    """One line; None for what the table does not show."""
    match event:
        case TaskEvent():
            words = ["task", event.last_status]
            if event.stop_code:
                words.append(f"{event.stop_code}: {event.stopped_reason}")
        case ContainerEvent():
            words = [event.container, event.last_status]
            if event.health_status != "UNKNOWN":
                words.append(event.health_status)
            if event.exit_code is not None:
                words.append(f"exit code {event.exit_code}")
            if event.reason:
                words.append(event.reason)
        case WaitingEvent():
            words = ["task", f"waits for capacity: {event.reason}, {event.ahead} ahead"]
        case _:
            return None
    at = datetime.datetime.fromtimestamp(event.at_ns / 1e9, datetime.UTC)
    stamp = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{stamp} {event.task_id[:12]} {make_printable(' '.join(words))}"


def _show(event: Event, output: str) -> None:
    if output == "json":
        line = json.dumps(event.event) if isinstance(event, StateChange) else None
    else:
        line = _describe(event)
    if line is not None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


@click.command("events")
@click.argument("task", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on; with a task until it stops.")
@click.option(
    "--output", type=click.Choice(["table", "json"]), default="table", show_default=True,
    help="json: EventBridge's ECS Task State Change, one a line.",
)  # fmt: skip
@click.pass_obj
def command(
    settings: Settings, task: str | None, follow: bool, output: Literal["table", "json"]
) -> None:
    """Show what happened to a task, or to all of them, oldest first.

    \b
    Example:
      fargatelite events --follow --output json
    """
    task_id = find_record(settings, task).task_id if task is not None else None
    follower = EventFollower(settings, task_id)
    try:
        if not follow:
            for event in follower.read_new():
                _show(event, output)
            return
        end = End(settings, task_id)
        for event in follower.follow(end.is_there.is_set, end.wake):
            _show(event, output)
        if end.failure is not None:
            raise end.failure
    finally:
        follower.close()
