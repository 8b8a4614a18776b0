"""`fargatelite check`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from fargatelite.cli.tables import print_json, print_table
from fargatelite.runtime.check import CheckResult, run_checks
from fargatelite.runtime.security import ACCEPTED, IN_FORCE, Defence, look_at_defences
from fargatelite.settings import Settings


@click.command("check")
@click.option("--security", is_flag=True, help="Say what of the isolation is weaker here.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def command(settings: Settings, security: bool, output: str) -> int:
    """Show what this host offers and lacks; exit with 1 when something is missing, and with
    --security when a defence is weaker.

    \b
    Example:
      fargatelite check
    """
    if security:
        defences = look_at_defences(settings)
        _show(output, "defences", ("DEFENCE", "STATE", "DETAIL"), defences)
        return 0 if all(item.state in (IN_FORCE, ACCEPTED) for item in defences) else 1
    results = run_checks(settings)
    _show(output, "checks", ("CHECK", "STATE", "DETAIL", "COST"), results)
    return 1 if any(result.state == "missing" for result in results) else 0


def _show(
    output: str, member: str, columns: Sequence[str], rows: Sequence[CheckResult | Defence]
) -> None:
    if output == "json":
        print_json({member: rows})
        return
    cells = [
        (row.name, row.state, row.detail, *([row.cost] if isinstance(row, CheckResult) else []))
        for row in rows
    ]
    print_table(columns, cells)
    remedies = [f"{row.name}: {row.remedy}\n" for row in rows if row.remedy]
    if remedies:
        sys.stdout.write("\n" + "".join(remedies))
