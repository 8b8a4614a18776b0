"""Rows of FOCUS 1.2 (FinOps Open Cost and Usage Specification): one per meter, task and month.

Charge periods begin with the pull and are as long as what is billed. Quantities are exact; GB of
Fargate is 2^30 bytes, so the unit is GiB-Hours.
Source: contract 7.4; FOCUS_Spec 1.2, checked by focus-validator 2.2.1 (tests/focus).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec

from fargatelite.billing.bill import Line
from fargatelite.billing.invoice import BilledTask, Slice, month_of, plain, slice_bill

__all__ = ["FOCUS_COLUMNS", "focus_rows"]

PROVIDER = "fargatelite"
SERVICE = "Amazon Elastic Container Service (fargatelite)"

FOCUS_COLUMNS = (
    "AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName",
    "BillingAccountType", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "CapacityReservationId", "CapacityReservationStatus", "ChargeCategory", "ChargeClass",
    "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountName",
    "CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountType",
    "CommitmentDiscountUnit", "ConsumedQuantity", "ConsumedUnit", "ContractedCost",
    "ContractedUnitPrice", "EffectiveCost", "InvoiceId", "InvoiceIssuerName", "ListCost",
    "ListUnitPrice", "PricingCategory", "PricingCurrency", "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost", "PricingCurrencyListUnitPrice", "PricingQuantity",
    "PricingUnit", "ProviderName", "PublisherName", "RegionId", "RegionName", "ResourceId",
    "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "ServiceSubcategory",
    "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName",
    "SubAccountType", "Tags",
)  # fmt: skip


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def focus_rows(tasks: Iterable[BilledTask]) -> Iterator[dict[str, str]]:
    """A row for each meter; members that are not there are null (an empty cell)."""
    for task in tasks:
        for piece in slice_bill(task, "month"):
            for line in piece.lines:
                yield _row(task, piece, line)


def _row(task: BilledTask, piece: Slice, line: Line) -> dict[str, str]:
    bill = task.bill
    first, following = month_of(piece.begin_s)
    unit = line.unit.replace("GB-", "GiB-")
    sku = f"fargate-{task.cpu_architecture}-{bill.capacity}-{line.meter.replace(' ', '-')}".lower()
    cost, rate, quantity = map(plain, (line.cost, line.rate, line.quantity))
    details = {
        "CoreCount": task.cpu_units / 1024,
        "MemorySize": task.memory_mib / 1024,
        "OperatingSystem": "Linux",
        "x_CpuArchitecture": task.cpu_architecture,
    }
    return {
        "AvailabilityZone": f"{bill.region}a",
        "BilledCost": cost,
        # An account's number alone would lose its leading zeros where CSV is read without types.
        "BillingAccountId": f"arn:aws:iam::{task.account}:root",
        "BillingAccountName": f"account {task.account}",
        "BillingAccountType": "Account",
        "BillingCurrency": bill.currency,
        "BillingPeriodEnd": _time(following.timestamp()),
        "BillingPeriodStart": _time(first.timestamp()),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{line.meter} of a Fargate task of {bill.family}:{task.revision}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _time(piece.end_s),
        "ChargePeriodStart": _time(piece.begin_s),
        "ConsumedQuantity": quantity,
        "ConsumedUnit": unit,
        "ContractedCost": cost,
        "ContractedUnitPrice": rate,
        "EffectiveCost": cost,
        "InvoiceIssuerName": PROVIDER,
        "ListCost": cost,
        "ListUnitPrice": rate,
        "PricingCategory": "Dynamic" if bill.capacity == "FARGATE_SPOT" else "Standard",
        "PricingCurrency": bill.currency,
        "PricingCurrencyContractedUnitPrice": rate,
        "PricingCurrencyEffectiveCost": cost,
        "PricingCurrencyListUnitPrice": rate,
        "PricingQuantity": quantity,
        "PricingUnit": unit,
        "ProviderName": PROVIDER,
        "PublisherName": PROVIDER,
        "RegionId": bill.region,
        "RegionName": bill.region,
        "ResourceId": task.arn,
        "ResourceName": f"{bill.family}/{bill.task_id}",
        "ResourceType": "Task",
        "ServiceCategory": "Compute",
        "ServiceName": SERVICE,
        "ServiceSubcategory": "Containers",
        "SkuId": sku,
        "SkuMeter": line.meter,
        "SkuPriceDetails": msgspec.json.encode(details).decode(),
        "SkuPriceId": f"{sku}-{bill.region}-{bill.price_effective}",
        "SubAccountId": task.cluster,
        "SubAccountName": task.cluster,
        "SubAccountType": "Cluster",
        "Tags": msgspec.json.encode(task.tags).decode(),
    }
