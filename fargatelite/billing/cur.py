"""Rows with the column names of AWS' Cost and Usage Report 2.0, split cost allocation included.

A row per meter and task with its cost, as AWS has it; behind it a row per container whose cost
columns are 0 and whose `split_line_item_*` columns say its part. AWS splits tasks on EC2 that way;
a Fargate task is a row of its own there and is not split further, so usage types and operation of
the container rows are ours.
Source: contract 7.3; AWS Data Exports user guide, "Split line item details".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from fargatelite.billing.bill import Line
from fargatelite.billing.invoice import BilledTask, Slice, month_of, plain, slice_bill
from fargatelite.billing.split import share

__all__ = ["CUR_COLUMNS", "cur_rows"]

_PREFIXES = {
    "us-east-1": "USE1-", "us-east-2": "USE2-", "us-west-2": "USW2-", "eu-west-1": "EU-",
    "eu-central-1": "EUC1-", "eu-west-2": "EUW2-", "ap-northeast-1": "APN1-",
}  # fmt: skip
_METERS = {
    "vCPU": "vCPU-Hours:perCPU",
    "Memory": "GB-Hours",
    "Ephemeral Storage": "EphemeralStorage-GB-Hours",
}
_SPLIT = (
    "reserved_usage", "actual_usage", "split_usage", "split_usage_ratio", "split_cost",
    "unused_cost", "net_split_cost", "net_unused_cost", "public_on_demand_split_cost",
    "public_on_demand_unused_cost",
)  # fmt: skip

CUR_COLUMNS = (
    "bill_bill_type", "bill_billing_entity", "bill_billing_period_end_date",
    "bill_billing_period_start_date", "bill_payer_account_id", "identity_line_item_id",
    "identity_time_interval", "line_item_availability_zone", "line_item_blended_cost",
    "line_item_blended_rate", "line_item_currency_code", "line_item_legal_entity",
    "line_item_line_item_description", "line_item_line_item_type", "line_item_operation",
    "line_item_product_code", "line_item_resource_id", "line_item_unblended_cost",
    "line_item_unblended_rate", "line_item_usage_account_id", "line_item_usage_amount",
    "line_item_usage_end_date", "line_item_usage_start_date", "line_item_usage_type",
    "pricing_currency", "pricing_public_on_demand_cost", "pricing_public_on_demand_rate",
    "pricing_term", "pricing_unit", "product_region_code", "product_servicecode", "resource_tags",
    "split_line_item_parent_resource_id", *(f"split_line_item_{name}" for name in _SPLIT),
)  # fmt: skip


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _usage_type(task: BilledTask, meter: str) -> str:
    bill = task.bill
    spot = "SpotUsage-" if bill.capacity == "FARGATE_SPOT" else ""
    arm = "ARM-" if task.cpu_architecture == "ARM64" and meter != "Ephemeral Storage" else ""
    return f"{_PREFIXES.get(bill.region, '')}{spot}Fargate-{arm}{_METERS[meter]}"


def cur_rows(tasks: Iterable[BilledTask]) -> Iterator[dict[str, str]]:
    """Rows of each meter of each task, cut at months; members that are not there are null."""
    for task in tasks:
        pieces = slice_bill(task, "month")
        for number, piece in enumerate(pieces):
            for index, line in enumerate(piece.lines):
                row = _row(task, piece, line, number)
                yield row
                weights = [Decimal(item.end_s - item.begin_s) for item in pieces]
                yield from _split_rows(task, row, index, number, weights)


def _row(task: BilledTask, piece: Slice, line: Line, number: int) -> dict[str, str]:
    bill = task.bill
    first, following = month_of(piece.begin_s)
    cost, rate, quantity = map(plain, (line.cost, line.rate, line.quantity))
    begin, end = _time(piece.begin_s), _time(piece.end_s)
    meter = line.meter.replace(" ", "")
    return {
        "bill_bill_type": "Anniversary",
        "bill_billing_entity": "fargatelite",
        "bill_billing_period_end_date": _time(following.timestamp()),
        "bill_billing_period_start_date": _time(first.timestamp()),
        "bill_payer_account_id": task.account,
        "identity_line_item_id": f"{bill.task_id}-{meter}-{number}",
        "identity_time_interval": f"{begin}/{end}",
        "line_item_availability_zone": f"{bill.region}a",
        "line_item_blended_cost": cost,
        "line_item_blended_rate": rate,
        "line_item_currency_code": bill.currency,
        "line_item_legal_entity": "fargatelite",
        "line_item_line_item_description": f"{rate} {bill.currency} per {line.unit}",
        "line_item_line_item_type": "Usage",
        "line_item_operation": "FargateTask",
        "line_item_product_code": "AmazonECS",
        "line_item_resource_id": task.arn,
        "line_item_unblended_cost": cost,
        "line_item_unblended_rate": rate,
        "line_item_usage_account_id": task.account,
        "line_item_usage_amount": quantity,
        "line_item_usage_end_date": end,
        "line_item_usage_start_date": begin,
        "line_item_usage_type": _usage_type(task, line.meter),
        "pricing_currency": bill.currency,
        "pricing_public_on_demand_cost": cost,
        "pricing_public_on_demand_rate": rate,
        "pricing_term": "Spot" if bill.capacity == "FARGATE_SPOT" else "OnDemand",
        "pricing_unit": "hours",
        "product_region_code": bill.region,
        "product_servicecode": "AmazonECS",
        "resource_tags": msgspec.json.encode(
            {f"user_{key}": value for key, value in task.tags.items()}
        ).decode(),
    }


def _split_rows(
    task: BilledTask, parent: dict[str, str], index: int, number: int, weights: list[Decimal]
) -> Iterator[dict[str, str]]:
    """`index` is the meter's, `number` the piece's; what is split is cut as the task was."""
    for container in task.bill.containers:
        split = container.splits[index]

        def cut(value: Decimal) -> str:
            return plain(share(value, weights)[number] if len(weights) > 1 else value)

        cost, unused = cut(split.split_cost), cut(split.unused_cost)
        yield {
            **parent,
            "identity_line_item_id": f"{parent['identity_line_item_id']}-{container.name}",
            "line_item_blended_cost": "0",
            "line_item_unblended_cost": "0",
            "pricing_public_on_demand_cost": "0",
            "line_item_operation": "ECSTask-Fargate",
            "line_item_resource_id": task.container_arns[container.name],
            "line_item_usage_amount": cut(split.split_usage),
            "split_line_item_parent_resource_id": task.arn,
            "split_line_item_reserved_usage": cut(split.reserved_usage),
            "split_line_item_actual_usage": cut(split.actual_usage),
            "split_line_item_split_usage": cut(split.split_usage),
            "split_line_item_split_usage_ratio": plain(split.split_usage_ratio),
            "split_line_item_split_cost": cost,
            "split_line_item_unused_cost": unused,
            "split_line_item_net_split_cost": cost,
            "split_line_item_net_unused_cost": unused,
            "split_line_item_public_on_demand_split_cost": cost,
            "split_line_item_public_on_demand_unused_cost": unused,
        }
