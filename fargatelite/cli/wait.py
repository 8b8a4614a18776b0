"""`fargatelite wait`."""

from __future__ import annotations

import click

from fargatelite.cli.main import OWN_FAILURE
from fargatelite.runtime.handle import essential_exit_code
from fargatelite.runtime.record import find_record
from fargatelite.runtime.remote import wait_stopped
from fargatelite.settings import Settings


@click.command("wait")
@click.argument("task")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after this long.")
@click.pass_obj
def command(settings: Settings, task: str, timeout: float | None) -> int:
    """Wait until a task is STOPPED; exit with its essential container's code.

    \b
    Example:
      fargatelite wait 3f2a --timeout 60
    """
    record = wait_stopped(settings, find_record(settings, task).task_id, timeout)
    code = essential_exit_code(record.state)
    return OWN_FAILURE if code is None else code
