"""`fargatelite bill`, and the bill at the end of `run`."""

from __future__ import annotations

import csv
import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import IO, TYPE_CHECKING

import click

from fargatelite.cli.tables import format_bytes, format_money, print_json, print_table
from fargatelite.settings import Settings

if TYPE_CHECKING:
    from fargatelite.billing.bill import Bill, ContainerBill
    from fargatelite.billing.invoice import BilledTask, Group
    from fargatelite.billing.sizing import RightSizing

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BY = re.compile(r"task|family|day|container|tag:.+", re.DOTALL)


def _number(value: Decimal | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _money(value: Decimal | None) -> str:
    return "unknown" if value is None else f"{value:.10f}"


def format_size(cpu_units: int, memory_mib: int) -> str:
    """`0.25 vCPU, 0.5 GB`."""
    return f"{cpu_units / 1024:g} vCPU, {memory_mib / 1024:g} GB"


def describe_sizing(sizing: RightSizing, currency: str) -> str:
    """Right-sizing in a sentence."""
    margin = f"{sizing.margin * 100:.0f} % margin"
    measured = (
        f"{sizing.cpu_p99_vcpu:.2f} vCPU (p99) and {format_bytes(sizing.memory_peak_bytes)} (peak)"
    )
    if sizing.cpu_units is None or sizing.memory_mib is None or sizing.monthly_saving is None:
        return f"no Fargate size holds {measured} with {margin}"
    held = "; its CPU limit held it back" if sizing.is_throttled else ""
    size = format_size(sizing.cpu_units, sizing.memory_mib)
    if sizing.monthly_saving == 0:
        return f"the size fits: {measured} with {margin} need {size}{held}"
    word = "saves" if sizing.monthly_saving > 0 else "costs more:"
    return (
        f"{size} would do for {measured} with {margin}{held}: {word} "
        f"{abs(sizing.monthly_saving):.2f} {currency} a month"
    )


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
    rows = [_use_row(item.name, item) for item in bill.containers]
    rows.append(_use_row("task", bill))
    columns = (
        "CONTAINER",
        "CPU S",
        "GB S",
        "PEAK",
        f"USED {bill.currency}",
        f"SHARE {bill.currency}",
    )
    print_table(columns, rows, right=columns[1:], stream=stream)
    if bill.idle_share is not None:
        stream.write(
            f"\n{bill.idle_share * 100:.1f} % of {format_money(bill.cost, bill.currency)} paid for "
            f"what was not used ({bill.region}, prices of {bill.price_effective})\n"
        )
    if bill.right_sizing is not None:
        stream.write(describe_sizing(bill.right_sizing, bill.currency) + "\n")
    if bill.damaged_records:
        stream.write(f"{bill.damaged_records} places in the ledger are damaged and left out\n")


def _use_row(name: str, item: Bill | ContainerBill) -> tuple[str, ...]:
    peak = item.memory_peak_bytes
    return (
        name,
        _number(item.cpu_seconds),
        _number(item.memory_gb_seconds),
        "unknown" if peak is None else format_bytes(peak),
        _money(item.used_cost),
        _money(item.cost),
    )


def _print_groups(by: str, groups: Sequence[Group], total: Decimal) -> None:
    currency = groups[0].currency if groups else "USD"
    columns = (
        by.upper() if not by.startswith("tag:") else by,
        "TASKS", "BILLED S", "VCPU-HOURS", "GB-HOURS", f"COST {currency}", f"USED {currency}",
        "IDLE", "COULD SAVE/MONTH",
    )  # fmt: skip
    rows = [
        (
            group.key[:12] if by == "task" else group.key or "-",
            str(group.tasks),
            str(group.billed_seconds),
            f"{group.vcpu_hours:.6f}",
            f"{group.gb_hours:.6f}",
            _money(group.cost),
            _money(group.used_cost),
            "unknown" if group.idle_share is None else f"{group.idle_share * 100:.1f} %",
            "-" if group.monthly_saving is None else f"{group.monthly_saving:.2f}",
        )
        for group in groups
    ]
    print_table(columns, [*rows, ("total", "", "", "", "", _money(total), "", "", "")],
                right=columns[1:])  # fmt: skip


def _write_csv(columns: Sequence[str], rows: Iterable[dict[str, str]]) -> None:
    writer = csv.DictWriter(sys.stdout, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_groups_csv(groups: Iterable[Group]) -> None:
    import msgspec

    from fargatelite.billing.invoice import Group, plain

    names = [field.encode_name for field in msgspec.structs.fields(Group)]
    rows = (
        {
            name: plain(value) if isinstance(value, Decimal) else "" if value is None else value
            for name, value in zip(names, msgspec.structs.astuple(group), strict=True)
        }
        for group in groups
    )
    _write_csv(names, rows)


def parse_moment(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> int | None:
    """`2026-11-01`, `2026-11-01T12:00` (UTC), or an age: `90s`, `15m`, `12h`, `7d`; in ns."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([smhd])", text, re.ASCII)
    if match is not None:
        return time.time_ns() - int(match[1]) * _UNITS[match[2]] * 10**9
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is neither a date nor an age (7d)") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9


def parse_margin(context: click.Context, parameter: click.Parameter, percent: int) -> Decimal:
    """Per cent as a part of 1."""
    return Decimal(percent) / 100


def _parse_by(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and _BY.fullmatch(text) is None:
        raise click.BadParameter(f"{text!r} is none of task, family, tag:KEY, day, container")
    return text


@click.command("bill")
@click.argument("tasks", nargs=-1, metavar="[TASK...]")
@click.option("--by", callback=_parse_by, metavar="GROUP", help="task, family, tag:KEY, day, ...")
@click.option("--since", callback=parse_moment, metavar="TIME", help="Begun at this time or later.")
@click.option("--until", callback=parse_moment, metavar="TIME", help="Begun before this time.")
@click.option("--prices", metavar="FILE", help="A price book of your own.")
@click.option("--spot", is_flag=True, help="At the prices of Fargate Spot.")
@click.option(
    "--margin",
    type=click.IntRange(0, 1000),
    default=20,
    callback=parse_margin,
    metavar="PERCENT",
    help="What right-sizing leaves above what was measured.",
)
@click.option(
    "--output", type=click.Choice(["table", "json", "csv", "focus", "cur"]), default="table"
)
@click.pass_obj
def command(
    settings: Settings,
    tasks: tuple[str, ...],
    by: str | None,
    since: int | None,
    until: int | None,
    prices: str | None,
    spot: bool,
    margin: Decimal,
    output: str,
) -> None:
    """Show what tasks cost as Fargate bills them, and what they used.

    \b
    Example:
      fargatelite bill --by family --since 7d
    """
    from fargatelite.billing.bill import bill_to_builtins
    from fargatelite.runtime.bills import bill_tasks
    from fargatelite.runtime.record import find_record, list_records

    records = (
        [find_record(settings, task) for task in tasks]
        if tasks
        else list_records(settings, stopped=True)
    )
    billed = bill_tasks(
        settings,
        records,
        since_ns=since,
        until_ns=until,
        own_prices=prices,
        margin=margin,
        capacity="FARGATE_SPOT" if spot else "FARGATE",
        with_arns=output == "cur",
    )
    if output in ("focus", "cur"):
        _export(billed, output)
        return
    if by is None and len(tasks) == 1 and output in ("table", "json"):
        for item in billed:
            if output == "json":
                print_json(bill_to_builtins(item.bill))
            else:
                print_bill(item.bill, sys.stdout)
        return
    from fargatelite.billing.invoice import group_bills, sum_groups

    groups = group_bills(billed, by or "task")
    if output == "json":
        print_json({"by": by or "task", "groups": groups, "cost": str(sum_groups(groups))})
    elif output == "csv":
        _write_groups_csv(groups)
    else:
        _print_groups(by or "task", groups, sum_groups(groups))


def _export(billed: Iterable[BilledTask], output: str) -> None:
    if output == "focus":
        from fargatelite.billing.focus import FOCUS_COLUMNS, focus_rows

        _write_csv(FOCUS_COLUMNS, focus_rows(billed))
    else:
        from fargatelite.billing.cur import CUR_COLUMNS, cur_rows

        _write_csv(CUR_COLUMNS, cur_rows(billed))
