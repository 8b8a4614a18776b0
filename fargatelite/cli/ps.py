"""`fargatelite ps`."""

from __future__ import annotations

import sys
import time

import click

from fargatelite.cli.tables import format_duration, print_json, print_table
from fargatelite.runtime.record import list_records
from fargatelite.settings import Settings


@click.command("ps")
@click.option("-a", "--all", "stopped", is_flag=True, help="Stopped tasks too.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def command(settings: Settings, stopped: bool, quiet: bool, output: str) -> None:
    """List running tasks.

    \b
    Example:
      fargatelite ps --all
    """
    records = list(list_records(settings, stopped=stopped))
    if quiet:
        for record in records:
            sys.stdout.write(f"{record.task_id}\n")
        return
    if output == "json":
        # As ListTasks prints it.
        print_json({"taskArns": [record.describe()["taskArn"] for record in records]})
        return
    now = time.time_ns()
    print_table(
        ("TASK ID", "FAMILY", "STATUS", "DESIRED", "HEALTH", "ADDRESS", "AGE", "CONTAINERS"),
        [
            (
                record.task_id[:12],
                f"{record.definition['family']}:{record.definition.get('revision', 1)}",
                str(record.state.last_status),
                record.state.desired_status,
                str(record.state.health_status),
                record.facts.private_ipv4_address or "-",
                format_duration((now - record.state.created_at_ns) / 1e9),
                ",".join(
                    container.name
                    if container.exit_code is None
                    else f"{container.name}({container.exit_code})"
                    for container in record.state.containers
                ),
            )
            for record in records
        ],
        right=("AGE",),
    )
