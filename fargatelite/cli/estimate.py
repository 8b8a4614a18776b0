"""`fargatelite estimate`."""

from __future__ import annotations

import re
import sys
from decimal import Decimal

import click

from fargatelite.cli.bill import format_size
from fargatelite.cli.run import launch_options, read_source
from fargatelite.cli.tables import print_json, print_table
from fargatelite.errors import ConfigurationInvalid
from fargatelite.settings import Settings
from fargatelite.taskdef.launch_type import LaunchType, policy_for

_HOURS_A_DAY = {"s": Decimal(1) / 3600, "m": Decimal(1) / 60, "h": Decimal(1)}


def _parse_time(context: click.Context, parameter: click.Parameter, text: str) -> Decimal:
    """`8h/day`, `90m/day`; hours a day."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])/day", text, re.ASCII)
    hours = Decimal(match[1]) * _HOURS_A_DAY[match[2]] if match else None
    if hours is None or hours > 24:
        raise click.BadParameter(f"{text!r} is not of the form 8h/day or 90m/day")
    return hours


@click.command("estimate")
@click.argument("definition")
@click.option(
    "--for",
    "hours_per_day",
    default="24h/day",
    callback=_parse_time,
    metavar="TIME",
    help="How long it runs: 8h/day, 90m/day.",
)
@click.option("--region", metavar="REGION", help="Whose prices; the setting's if not given.")
@click.option("--prices", metavar="FILE", help="A price book of your own.")
@click.option("--spot", is_flag=True, help="At the prices of Fargate Spot.")
@launch_options
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def command(
    settings: Settings,
    definition: str,
    hours_per_day: Decimal,
    region: str | None,
    prices: str | None,
    spot: bool,
    launch_type: LaunchType,
    allow_privileged: bool,
    output: str,
) -> None:
    """Show what a task will cost on Fargate before it runs.

    \b
    Example:
      fargatelite estimate examples/hello.json --for 8h/day
    """
    from fargatelite.billing.estimate import estimate_cost
    from fargatelite.billing.prices import load_price_book
    from fargatelite.taskdef.load import load_definition
    from fargatelite.taskdef.store import find_source

    policy = policy_for(launch_type, settings, allow_privileged=allow_privileged)
    loaded = load_definition(find_source(settings, read_source(definition)), policy)
    if not loaded.cpu_units or not loaded.memory_mib:
        raise ConfigurationInvalid(
            f"{loaded.family} has no size, so that it has no price: give cpu and memory"
        )
    found = estimate_cost(
        family=loaded.family,
        cpu_units=loaded.cpu_units,
        memory_mib=loaded.memory_mib,
        ephemeral_storage_gib=loaded.ephemeral_storage_gib,
        cpu_architecture=loaded.cpu_architecture,
        prices=load_price_book(region or settings.region, prices or settings.price_book),
        hours_per_day=hours_per_day,
        capacity="FARGATE_SPOT" if spot else "FARGATE",
    )
    if output == "json":
        print_json(found)
        return
    print_table(
        ("ESTIMATE", "PER HOUR", "UNIT", "RATE", f"COST {found.currency}"),
        [
            (line.meter, f"{line.quantity:g}", line.unit, str(line.rate), f"{line.cost:.10f}")
            for line in found.lines
        ],
        right=("PER HOUR", "RATE", f"COST {found.currency}"),
    )
    sys.stdout.write("\n")
    print_table(
        (f"{found.family}, {format_size(found.cpu_units, found.memory_mib)}",
         f"COST {found.currency}"),
        [
            (f"at least, {found.minimum_seconds} s", f"{found.minimum_cost:.10f}"),
            ("an hour", f"{found.hourly_cost:.6f}"),
            (f"a day of {found.hours_per_day:g} h", f"{found.daily_cost:.4f}"),
            (f"a month (730 h, {found.hours_per_day:g} h a day)", f"{found.monthly_cost:.2f}"),
        ],
        right=(f"COST {found.currency}",),
    )  # fmt: skip
    sys.stdout.write(f"\n{found.region}, prices of {found.price_effective}: {found.price_source}\n")
