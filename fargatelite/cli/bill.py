"""`fargatelite bill`, and the bill at the end of `run`."""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import IO

import click

from fargatelite.billing.bill import Bill, bill_to_builtins
from fargatelite.cli.tables import format_bytes, format_money, print_json, print_table
from fargatelite.runtime.record import find_record
from fargatelite.runtime.usage import compute_task_bill
from fargatelite.settings import Settings


def _number(value: Decimal | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _money(value: Decimal | None) -> str:
    return "unknown" if value is None else f"{value:.10f}"


def print_bill(bill: Bill, stream: IO[str]) -> None:
    """The charge by meter, then use and part of the charge by container and for the task."""
    state = "" if bill.is_final else ", still running"
    print_table(
        ("BILL", "QUANTITY", "UNIT", "RATE", f"COST {bill.currency}"),
        [
            (line.meter, f"{line.quantity:.8f}", line.unit, str(line.rate), _money(line.cost))
            for line in bill.lines
        ]
        + [(f"total, {bill.billed_seconds} s billed{state}", "", "", "", _money(bill.cost))],
        right=("QUANTITY", "RATE", f"COST {bill.currency}"),
        stream=stream,
    )
    stream.write("\n")
    rows = [
        (
            item.name,
            _number(item.cpu_seconds),
            _number(item.memory_gb_seconds),
            "unknown" if item.memory_peak_bytes is None else format_bytes(item.memory_peak_bytes),
            _money(item.used_cost),
            _money(item.cost),
        )
        for item in bill.containers
    ]
    rows.append(
        (
            "task",
            _number(bill.cpu_seconds),
            _number(bill.memory_gb_seconds),
            "unknown" if bill.memory_peak_bytes is None else format_bytes(bill.memory_peak_bytes),
            _money(bill.used_cost),
            _money(bill.cost),
        )
    )
    columns = ("CONTAINER", "CPU S", "GB S", "PEAK", "USED USD", "SHARE USD")
    print_table(columns, rows, right=columns[1:], stream=stream)
    if bill.idle_share is not None:
        stream.write(
            f"\n{bill.idle_share * 100:.1f} % of {format_money(bill.cost, bill.currency)} paid for "
            f"what was not used ({bill.region}, prices of {bill.price_effective})\n"
        )


@click.command("bill")
@click.argument("task")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def command(settings: Settings, task: str, output: str) -> None:
    """Show what a task cost as Fargate bills it, and what it used.

    \b
    Example:
      fargatelite bill 3f2a --output json
    """
    bill = compute_task_bill(settings, find_record(settings, task))
    if output == "json":
        print_json(bill_to_builtins(bill))
    else:
        print_bill(bill, sys.stdout)
