"""May a container start now, and if not, can it ever? Only computes (contract 3.5)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from fargatelite.runtime.task import ContainerState

__all__ = ["Condition", "ContainerStep", "Dependency", "Verdict", "dependents_of", "judge"]


class ContainerStep(IntEnum):
    """Known status of a container; it only grows (the ECS agent's order, without its retries)."""

    NONE = 0
    PULLED = 1
    STARTING = 2
    RUNNING = 3
    STOPPED = 4


class Condition(StrEnum):
    """What a dependent waits for. No definition says CREATE: it is what `volumesFrom` needs of the
    container whose volumes they are."""

    CREATE = "CREATE"
    START = "START"
    COMPLETE = "COMPLETE"
    SUCCESS = "SUCCESS"
    HEALTHY = "HEALTHY"


_WITHOUT_TIME_OUT = (Condition.CREATE, Condition.START)


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `dependsOn`, or what `volumesFrom`, `links` and log routing imply."""

    container: str
    condition: Condition


class Verdict(IntEnum):
    """About one dependency."""

    MET = 0
    WAIT = 1
    IMPOSSIBLE = 2


def judge(dependency: Dependency, target: ContainerState) -> Verdict:
    """Whether the target satisfies the dependency, may yet, or never will.

    Source: contract 3.5. A HEALTHY that was reached counts also when the container has become
    UNHEALTHY since: it is waited for at start-up only.
    """
    is_stopped = target.step == ContainerStep.STOPPED
    if is_stopped and target.started_at_ns is None:
        return Verdict.IMPOSSIBLE
    # Its first run counts: a restart does not undo it.
    has_ended = is_stopped or target.first_exit_code is not None
    exit_code = target.exit_code if target.first_exit_code is None else target.first_exit_code
    match dependency.condition:
        case Condition.CREATE:
            is_met, is_lost = target.step >= ContainerStep.STARTING, False
        case Condition.START:
            is_met, is_lost = target.step >= ContainerStep.RUNNING, False
        case Condition.COMPLETE:
            is_met, is_lost = has_ended, False
        case Condition.SUCCESS:
            is_met = has_ended and exit_code == 0
            is_lost = has_ended and not is_met
        case Condition.HEALTHY:
            is_met = target.was_healthy
            is_lost = is_stopped and not is_met
    if is_met:
        return Verdict.MET
    if is_lost or (target.is_start_timed_out and dependency.condition not in _WITHOUT_TIME_OUT):
        return Verdict.IMPOSSIBLE
    return Verdict.WAIT


def dependents_of(name: str, containers: Iterable[ContainerState]) -> list[ContainerState]:
    """The containers that stop before `name` does: those that name it in their `dependsOn`."""
    return [
        container
        for container in containers
        if any(
            dependency.container == name and dependency.condition is not Condition.CREATE
            for dependency in container.depends_on
        )
    ]
