"""A meter's cost split to containers, as AWS' split cost allocation data does it for tasks. Pure.

Split usage is the greater of what was reserved and what was used; its cost is split usage times
rate, and what of the parent nobody used is shared in proportion to split usage. Where more is
reserved than there is, the parent's cost is shared in that proportion. Parts add up to the parent
to the last digit: the last container gets what is left.
Source: AWS Data Exports user guide, "Understanding split cost allocation data".
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec

__all__ = ["AMOUNT", "Split", "share", "split_meter"]

AMOUNT = Decimal("1E-15")
"""What amounts of money are rounded to (half to even)."""
_ZERO = Decimal(0)


class Split(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One container's part of one meter; quantities in the meter's unit."""

    meter: str
    reserved_usage: Decimal
    actual_usage: Decimal
    split_usage: Decimal
    split_usage_ratio: Decimal
    """Of the split usage of all containers; they add up to 1 but for their last digit."""
    split_cost: Decimal
    unused_cost: Decimal


def share(total: Decimal, weights: Sequence[Decimal]) -> list[Decimal]:
    """`total` in proportion to the weights (evenly when all are 0), adding up exactly."""
    if not weights:
        return []
    whole = sum(weights, _ZERO)
    if whole == 0:
        weights, whole = [Decimal(1)] * len(weights), Decimal(len(weights))
    parts = [(total * weight / whole).quantize(AMOUNT) for weight in weights[:-1]]
    return [*parts, total - sum(parts, _ZERO)]


def split_meter(
    *,
    meter: str,
    quantity: Decimal,
    rate: Decimal,
    cost: Decimal,
    reserved: Sequence[Decimal],
    actual: Sequence[Decimal],
) -> list[Split]:
    """The parts of a parent's `quantity` at `rate`, which cost `cost`, in the containers' order."""
    usages = [max(pair) for pair in zip(reserved, actual, strict=True)]
    whole = sum(usages, _ZERO)
    count = len(usages)
    parts = share(cost, usages)
    if whole <= quantity:
        # Never more than the container's part of the whole: the last digit of a rounded cost.
        costs = [
            min(part, (usage * rate).quantize(AMOUNT))
            for part, usage in zip(parts, usages, strict=True)
        ]
    else:
        costs = parts
    return [
        Split(
            meter=meter,
            reserved_usage=reserved[number],
            actual_usage=actual[number],
            split_usage=usages[number],
            split_usage_ratio=usages[number] / whole if whole else Decimal(1) / count,
            split_cost=costs[number],
            unused_cost=parts[number] - costs[number],
        )
        for number in range(count)
    ]
