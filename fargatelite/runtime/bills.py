"""Bills of many tasks, from their records and ledgers; exports and groups are made of these.

Ten thousand tasks have to take less than two seconds, so what a bill needs of a definition is read
from its recorded form, without decoding all of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from fargatelite import names
from fargatelite.billing.bill import (
    DEFAULT_MARGIN,
    BillableLife,
    Reservation,
    billed_interval_ns,
    compute_bill,
)
from fargatelite.billing.invoice import BilledTask
from fargatelite.billing.prices import Capacity, load_price_book
from fargatelite.meter.rollup import read_task_usage
from fargatelite.meter.usage import TaskUsage
from fargatelite.runtime.describe import container_uuid
from fargatelite.runtime.record import TaskRecord
from fargatelite.settings import Settings

__all__ = ["bill_task", "bill_tasks", "make_life"]

_INCLUDED_GIB = 20


def make_life(
    record: TaskRecord,
    used: TaskUsage | None,
    *,
    now_ns: int | None = None,
    capacity: Capacity = "FARGATE",
) -> BillableLife:
    """What a task's bill depends on."""
    wire, state = record.definition, record.state
    storage = wire.get("ephemeralStorage") or {}
    platform = wire.get("runtimePlatform") or {}
    containers: list[dict[str, Any]] = wire.get("containerDefinitions", [])
    by_name = {item.get("name"): item for item in containers}
    return BillableLife(
        task_id=record.task_id,
        family=str(wire["family"]),
        cpu_units=int(wire.get("cpu") or 0),
        memory_mib=int(wire.get("memory") or 0),
        ephemeral_storage_gib=int(storage.get("sizeInGiB", _INCLUDED_GIB)),
        cpu_architecture=platform.get("cpuArchitecture", "X86_64"),
        pull_started_at_ns=state.pull_started_at_ns,
        stopped_at_ns=state.stopped_at_ns,
        now_ns=now_ns or time.time_ns(),
        containers=tuple(container.name for container in state.containers),
        reservations=tuple(
            _reservation(by_name.get(container.name, {})) for container in state.containers
        ),
        capacity=capacity,
        clock_steps=used.clock_steps if used is not None else (),
    )


def _reservation(container: dict[str, Any]) -> Reservation:
    return Reservation(
        cpu_units=int(container.get("cpu") or 0),
        memory_mib=int(container.get("memoryReservation") or container.get("memory") or 0),
    )


def read_usage(settings: Settings, task_id: str) -> TaskUsage | None:
    """What a task used; None where nothing was measured. Raises: StateCorrupt."""
    try:
        return read_task_usage(settings.ledgers / f"{task_id}.ledger")
    except FileNotFoundError:
        return None


def bill_task(
    settings: Settings,
    record: TaskRecord,
    *,
    own_prices: str | None = None,
    margin: Decimal = DEFAULT_MARGIN,
    capacity: Capacity = "FARGATE",
    with_arns: bool = False,
) -> BilledTask:
    """The bill of a task and whose it is; up to now while it runs. `with_arns`: of containers too.

    A task without a ledger (it never came so far) has a charge and unknown usage.
    Raises: ConfigurationInvalid for an unknown price; StateCorrupt for a ledger without a header.
    """
    used = read_usage(settings, record.task_id)
    facts, task_id = record.facts, names.TaskId(record.task_id)
    life = make_life(record, used, capacity=capacity)
    prices = load_price_book(facts.region, own_prices or settings.price_book)
    interval = billed_interval_ns(life)
    return BilledTask(
        bill=compute_bill(life, used, prices, margin=margin),
        arn=names.task_arn(facts.region, facts.account, facts.cluster, task_id),
        account=facts.account,
        cluster=facts.cluster,
        group=facts.group,
        revision=int(record.definition.get("revision") or 0),
        tags=facts.tags,
        cpu_units=life.cpu_units,
        memory_mib=life.memory_mib,
        cpu_architecture=life.cpu_architecture,
        container_arns=_container_arns(record) if with_arns else {},
        begin_ns=interval[0] if interval is not None else None,
    )


def _container_arns(record: TaskRecord) -> dict[str, str]:
    facts, task_id = record.facts, names.TaskId(record.task_id)
    return {
        container.name: names.container_arn(
            facts.region,
            facts.account,
            facts.cluster,
            task_id,
            container_uuid(record.state, container.name),
        )
        for container in record.state.containers
    }


def bill_tasks(
    settings: Settings,
    records: Iterable[TaskRecord],
    *,
    since_ns: int | None = None,
    until_ns: int | None = None,
    own_prices: str | None = None,
    margin: Decimal = DEFAULT_MARGIN,
    capacity: Capacity = "FARGATE",
    with_arns: bool = False,
) -> Iterator[BilledTask]:
    """Bills of those tasks whose charge begins in [since, until); without bounds also of tasks
    that have none."""
    for record in records:
        begin_ns = record.state.pull_started_at_ns
        if since_ns is not None and (begin_ns is None or begin_ns < since_ns):
            continue
        if until_ns is not None and (begin_ns is None or begin_ns >= until_ns):
            continue
        yield bill_task(
            settings,
            record,
            own_prices=own_prices,
            margin=margin,
            capacity=capacity,
            with_arns=with_arns,
        )
