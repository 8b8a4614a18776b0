"""`fargatelite check`."""

from __future__ import annotations

import sys

import click

from fargatelite.cli.tables import print_json, print_table
from fargatelite.runtime.check import run_checks
from fargatelite.settings import Settings


@click.command("check")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def command(settings: Settings, output: str) -> int:
    """Show what this host offers and lacks; exit with 1 when something is missing.

    \b
    Example:
      fargatelite check
    """
    results = run_checks(settings)
    if output == "json":
        print_json({"checks": results})
    else:
        print_table(
            ("CHECK", "STATE", "DETAIL"),
            [(result.name, result.state, result.detail) for result in results],
        )
        remedies = [f"{result.name}: {result.remedy}\n" for result in results if result.remedy]
        if remedies:
            sys.stdout.write("\n" + "".join(remedies))
    return 1 if any(result.state == "missing" for result in results) else 0
