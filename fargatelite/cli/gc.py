"""`fargatelite gc`."""

from __future__ import annotations

import re
import sys

import click

from fargatelite.cli.main import OWN_FAILURE
from fargatelite.cli.tables import print_json
from fargatelite.runtime.gc import collect
from fargatelite.settings import Settings

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_age(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """`90s`, `15m`, `12h`, `7d` in seconds; a bare number is seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([smhd]?)", text, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{text!r} is not of the form 90s, 15m, 12h or 7d")
    return int(match[1]) * _UNITS[match[2] or "s"]


@click.command("gc")
@click.option(
    "--older-than",
    callback=parse_age,
    metavar="AGE",
    help="Records of tasks that stopped longer ago go; by default as the configuration says: 7d.",
)
@click.option("--images", is_flag=True, help="Also images and layers that no name refers to.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and leave it.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def command(
    settings: Settings, older_than: int | None, images: bool, dry_run: bool, output: str
) -> int:
    """Remove what crashed tasks left behind, old records and unused images.

    \b
    Example:
      fargatelite gc --older-than 7d --images
    """
    report = collect(settings, older_than_s=older_than, images=images, dry_run=dry_run)
    if output == "json":
        print_json(report)
    else:
        for word, items in (
            ("ended", report.tasks),
            ("removed leftovers of", report.orphans),
            ("removed record of", report.records),
            ("removed image", report.images),
            ("removed layer", report.layers),
        ):
            for item in items:
                sys.stdout.write(f"{'would have ' if dry_run else ''}{word} {item}\n")
        for failure in report.failures:
            click.echo(f"Error: {failure}", err=True)
    return OWN_FAILURE if report.failures else 0
