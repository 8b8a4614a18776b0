"""`fargatelite stop`."""

from __future__ import annotations

import contextlib

import click

from fargatelite import names
from fargatelite.errors import TaskBusy, TaskNotFound
from fargatelite.rundir import DesiredStop, RunDirectory
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
        run = RunDirectory(settings.runs, names.parse_task_id(record.task_id))
        if not run.is_supervised() and run.path.exists():
            raise TaskBusy(
                f"task {record.task_id[:12]} has lost its supervisor; `fargatelite gc` ends it"
            )
        with contextlib.suppress(TaskNotFound):  # it has just stopped
            run.request_stop(DesiredStop(stop_code="UserInitiated", reason=reason))
    for record in chosen:
        if not no_wait:
            wait_stopped(settings, record.task_id, None)
        click.echo(record.task_id)
