"""`fargatelite cp`."""

from __future__ import annotations

import re

import click

from fargatelite.cli.tables import make_printable
from fargatelite.errors import TaskNotFound
from fargatelite.runtime.copy import Copied, copy_in, copy_out
from fargatelite.runtime.guest import choose_container
from fargatelite.runtime.record import find_record
from fargatelite.settings import Settings

_INSIDE = re.compile(r"(arn:[^:]+:ecs:[^:]*:[^:]*:task/[^:]+|[0-9a-f]{1,32}):(.*)", re.ASCII)


@click.command("cp")
@click.option("-c", "--container", help="Container; may be left out when there is only one.")
@click.argument("source")
@click.argument("target")
@click.pass_obj
def command(settings: Settings, container: str | None, source: str, target: str) -> None:
    """Copy files into or out of a running container: one of SOURCE and TARGET is TASK:PATH.

    Directories are copied with all that is in them, DIR/. without the directory itself. Nothing in
    the container runs.

    \b
    Example:
      fargatelite cp -c web 3f2a:/etc/hosts .
    """
    inside, outside = _INSIDE.fullmatch(source), _INSIDE.fullmatch(target)
    if (inside is None) == (outside is None):
        raise click.UsageError(
            "exactly one of SOURCE and TARGET must be TASK:PATH; a local path with a colon "
            "begins with ./"
        )
    chosen = inside or outside
    assert chosen is not None
    record = find_record(settings, chosen[1])
    name = record.state.containers[choose_container(record, container)].name
    copied: Copied
    if inside is not None:
        copied = copy_out(record, name, inside[2], target)
    else:
        assert outside is not None
        if record.slot is None:
            raise TaskNotFound(f"task {record.task_id[:12]} is gone")
        copied = copy_in(record, name, source, outside[2], record.slot.uid_base)
    for path in copied.skipped:
        click.echo(f"skipped, no file or directory: {make_printable(path)}", err=True)
