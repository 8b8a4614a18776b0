"""What a task will cost before it runs. Pure."""

from __future__ import annotations

from decimal import Decimal, localcontext

import msgspec

from fargatelite.billing.bill import Line, make_lines
from fargatelite.billing.prices import Capacity, PriceBook
from fargatelite.billing.sizing import HOURS_PER_MONTH

__all__ = ["Estimate", "estimate_cost"]

_HOURS_PER_DAY = 24
_DIGITS = 50


class Estimate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The cost of a size; a day has `hours_per_day`, a month is 730 hours long."""

    family: str
    cpu_units: int
    memory_mib: int
    region: str
    capacity: str
    currency: str
    price_effective: str
    price_source: str
    minimum_seconds: int
    hours_per_day: Decimal
    lines: tuple[Line, ...]
    """Of one hour."""
    hourly_cost: Decimal
    minimum_cost: Decimal
    """Of the shortest life."""
    daily_cost: Decimal
    monthly_cost: Decimal


def estimate_cost(
    *,
    family: str,
    cpu_units: int,
    memory_mib: int,
    ephemeral_storage_gib: int,
    cpu_architecture: str,
    prices: PriceBook,
    hours_per_day: Decimal,
    capacity: Capacity = "FARGATE",
) -> Estimate:
    """Raises: ConfigurationInvalid for a price that is not known."""
    rates = prices.rates_of(cpu_architecture, capacity)

    def lines_for(seconds: int) -> list[Line]:
        return make_lines(
            cpu_units=cpu_units,
            memory_mib=memory_mib,
            ephemeral_storage_gib=ephemeral_storage_gib,
            seconds=seconds,
            rates=rates,
            prices=prices,
        )

    with localcontext() as context:
        context.prec = _DIGITS
        lines = lines_for(3600)
        hourly = sum((line.cost for line in lines), Decimal(0))
        shortest = sum((line.cost for line in lines_for(prices.minimum_s)), Decimal(0))
        return Estimate(
            family=family,
            cpu_units=cpu_units,
            memory_mib=memory_mib,
            region=prices.region,
            capacity=capacity,
            currency=prices.currency,
            price_effective=prices.effective,
            price_source=prices.source,
            minimum_seconds=prices.minimum_s,
            hours_per_day=hours_per_day,
            lines=tuple(lines),
            hourly_cost=hourly,
            minimum_cost=shortest,
            daily_cost=hourly * hours_per_day,
            monthly_cost=hourly * HOURS_PER_MONTH * hours_per_day / _HOURS_PER_DAY,
        )
