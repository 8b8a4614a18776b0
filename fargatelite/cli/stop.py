"""`fargatelite stop`."""

from __future__ import annotations

import click

from fargatelite.runtime.handle import RecordedTask
from fargatelite.runtime.record import find_record
from fargatelite.runtime.remote import wait_stopped
from fargatelite.settings import Settings


@click.command("stop")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--reason", default="Task stopped by user", help="Shown as stoppedReason.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the stop is recorded.")
@click.pass_obj
def command(settings: Settings, tasks: tuple[str, ...], reason: str, no_wait: bool) -> None:
    """Stop tasks: stop signal, then SIGKILL after each container's stopTimeout.

    \b
    Example:
      fargatelite stop 3f2a --reason "rolling out"
    """
    chosen = [find_record(settings, text) for text in tasks]
    for record in chosen:
        if record.state.last_status == "STOPPED":
            continue
        RecordedTask(settings, record).stop(reason, wait=False)
    for record in chosen:
        if not no_wait:
            wait_stopped(settings, record.task_id, None)
        click.echo(record.task_id)
