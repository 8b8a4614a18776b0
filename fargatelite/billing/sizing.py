"""Right-sizing: the cheapest of Fargate's 77 sizes that would have held what was measured. Pure.

What has to fit, each with a margin on top: the CPU of all but the busiest 1 % of seconds, and the
highest memory ever in use (page cache included: an upper bound, since a smaller task would have
reclaimed some). A task that its limit held back in more than 1 % of its periods would have used
more than was measured, so its CPU is not made smaller.
"""

from __future__ import annotations

import functools
from decimal import Decimal, localcontext

import msgspec

from fargatelite.billing.prices import Rates
from fargatelite.meter.usage import Profile, Usage
from fargatelite.taskdef.sizes import SIZES

__all__ = ["HOURS_PER_MONTH", "RightSizing", "hourly_cost", "right_size"]

HOURS_PER_MONTH = 730
"""As AWS' own calculator has it: 8760 / 12."""
_THROTTLED_PERCENT = 1
_NS_PER_S = 1_000_000_000


class RightSizing(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was measured, and the size for it; costs per month of 730 hours."""

    cpu_p99_vcpu: Decimal
    memory_peak_bytes: int
    is_throttled: bool
    margin: Decimal
    cpu_units: int | None
    """None when no size would hold it."""
    memory_mib: int | None
    monthly_cost: Decimal
    """Of the size that the task has."""
    monthly_saving: Decimal | None
    """Below 0 where the task needs a larger size."""


def hourly_cost(cpu_units: int, memory_mib: int, rates: Rates) -> Decimal:
    """What an hour of a size costs."""
    return (cpu_units * rates.vcpu_hour + memory_mib * rates.gb_hour) / 1024


@functools.lru_cache(maxsize=16)
def _sizes_by_cost(rates: Rates) -> tuple[tuple[Decimal, int, int], ...]:
    """Cost of an hour, CPU units and MiB of each size, cheapest first."""
    with localcontext() as context:
        context.prec = 50  # whoever calls
        return tuple(
            sorted(
                (hourly_cost(units, mib, rates), units, mib)
                for units, sizes in SIZES.items()
                for mib in sizes
            )
        )


def right_size(
    *,
    cpu_units: int,
    memory_mib: int,
    usage: Usage,
    profile: Profile,
    rates: Rates,
    margin: Decimal,
) -> RightSizing | None:
    """The size for a task that has `cpu_units` and `memory_mib`; None for one without a size."""
    if not cpu_units or not memory_mib:
        return None
    p99 = Decimal(profile.cpu_ns_per_s.p99) / _NS_PER_S
    throttled = usage.throttled_periods * 100 > usage.periods * _THROTTLED_PERCENT
    wanted_units = p99 * (1 + margin) * 1024
    if throttled:
        wanted_units = max(wanted_units, Decimal(cpu_units))
    wanted_bytes = usage.memory_peak_bytes * (1 + margin)
    now = hourly_cost(cpu_units, memory_mib, rates)
    best = next(
        (
            size
            for size in _sizes_by_cost(rates)
            if size[1] >= wanted_units and size[2] * 2**20 >= wanted_bytes
        ),
        None,
    )
    return RightSizing(
        cpu_p99_vcpu=p99,
        memory_peak_bytes=usage.memory_peak_bytes,
        is_throttled=throttled,
        margin=margin,
        cpu_units=best[1] if best else None,
        memory_mib=best[2] if best else None,
        monthly_cost=now * HOURS_PER_MONTH,
        monthly_saving=(now - best[0]) * HOURS_PER_MONTH if best else None,
    )
