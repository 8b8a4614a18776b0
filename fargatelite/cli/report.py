"""`fargatelite report`."""

from __future__ import annotations

import sys
import time

import click

from fargatelite.settings import Settings


@click.command("report")
@click.argument("task")
@click.option("-o", "--out", metavar="FILE", default="-", help="Where to; - is standard output.")
@click.pass_obj
def command(settings: Settings, task: str, out: str) -> None:
    """Make a page of a task: curves, events, launch, bill and right-sizing.

    \b
    Example:
      fargatelite report 3f2a -o report.html
    """
    from pathlib import Path

    from fargatelite.report.page import make_page
    from fargatelite.rundir import replace_file
    from fargatelite.runtime.record import find_record
    from fargatelite.runtime.reporting import gather_report

    page = make_page(gather_report(settings, find_record(settings, task)), time.time_ns())
    if out == "-":
        sys.stdout.write(page)
    else:
        replace_file(Path(out), page.encode())
