"""`fargatelite describe`."""

from __future__ import annotations

from typing import Any

import click

from fargatelite.cli.tables import make_printable, print_json
from fargatelite.errors import TaskNotFound
from fargatelite.runtime.record import find_record
from fargatelite.settings import Settings


@click.command("describe")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.pass_obj
def command(settings: Settings, tasks: tuple[str, ...]) -> None:
    """Show tasks (ids or ARNs, shortened if unique) in the shape of DescribeTasks.

    An unknown task is listed under `failures`, as ECS does.

    \b
    Example:
      fargatelite describe 3f2a
    """
    found: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for text in tasks:
        try:
            found.append(find_record(settings, text).describe())
        except TaskNotFound:
            failures.append({"arn": make_printable(text), "reason": "MISSING"})
    print_json({"tasks": found, "failures": failures})
