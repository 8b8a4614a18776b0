"""RunTask's `overrides` (contract 8.3): what a single run changes of its definition."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from msgspec import field

from fargatelite.errors import InvalidTaskDefinition
from fargatelite.taskdef.decode import decode_shape
from fargatelite.taskdef.fields import (
    EnvironmentFile,
    EphemeralStorage,
    KeyValue,
    TaskDefinition,
)
from fargatelite.taskdef.fields_refused import (
    ACCELERATORS,
    RESOURCES,
    InferenceAcceleratorOverride,
    ResourceRequirement,
)
from fargatelite.taskdef.launch_type import FARGATE, Policy
from fargatelite.taskdef.load import load_definition, to_wire
from fargatelite.taskdef.markers import Effect
from fargatelite.taskdef.problems import Problem, problem

__all__ = ["ContainerOverride", "TaskOverride", "apply_overrides"]

_MERGED = Effect("taskdef.overrides.apply_overrides", "8.3")


class ContainerOverride(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """ContainerOverride: entry point and image cannot be overridden."""

    name: Annotated[str | None, _MERGED] = None
    command: Annotated[tuple[str, ...] | None, _MERGED] = None
    environment: Annotated[tuple[KeyValue, ...], _MERGED] = ()
    environment_files: Annotated[tuple[EnvironmentFile, ...], _MERGED] = ()
    cpu_units: Annotated[int | None, _MERGED] = field(default=None, name="cpu")
    memory_mib: Annotated[int | None, _MERGED] = field(default=None, name="memory")
    memory_reservation_mib: Annotated[int | None, _MERGED] = field(
        default=None, name="memoryReservation"
    )
    resource_requirements: Annotated[tuple[ResourceRequirement, ...], RESOURCES] = ()


class TaskOverride(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """TaskOverride; the pair of sizes must be valid again (contract 1)."""

    container_overrides: Annotated[tuple[ContainerOverride, ...], _MERGED] = ()
    cpu: Annotated[str | None, _MERGED] = None
    memory: Annotated[str | None, _MERGED] = None
    ephemeral_storage: Annotated[EphemeralStorage | None, _MERGED] = None
    execution_role_arn: Annotated[str | None, _MERGED] = None
    task_role_arn: Annotated[str | None, _MERGED] = None
    inference_accelerator_overrides: Annotated[
        tuple[InferenceAcceleratorOverride, ...], ACCELERATORS
    ] = ()


def _refuse(problems: list[Problem]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidTaskDefinition(
            f"{problems[0]}{more}", problems=tuple(problems), reported=problems[0].message
        )


def _check_length(overrides: dict[str, Any], policy: Policy) -> None:
    try:
        length = len(json.dumps(overrides, separators=(",", ":"), ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        _refuse([problem("overrides", f"Overrides are not JSON: {error}")])
        raise AssertionError from error  # _refuse has raised
    limit = policy.max_overrides_characters
    if limit is not None and length > limit:
        _refuse(
            [
                problem(
                    "overrides",
                    f"Overrides are too long: {length} characters, {limit} are allowed.",
                    f"{length} characters", f"at most {limit}",
                )
            ]
        )  # fmt: skip


def _merge_container(wire: dict[str, Any], override: ContainerOverride) -> None:
    given: dict[str, Any] = msgspec.to_builtins(override)
    # Adds, and replaces by name (contract 2.4); files replace.
    names = {item.name for item in override.environment}
    wire["environment"] = [
        item for item in wire["environment"] if item["name"] not in names
    ] + list(given.pop("environment"))
    if not override.environment_files:
        del given["environmentFiles"]
    wire.update({member: value for member, value in given.items() if value is not None})


def apply_overrides(
    definition: TaskDefinition, overrides: dict[str, Any] | None, policy: Policy = FARGATE
) -> TaskDefinition:
    """The definition of one run; everything is checked again, sizes as a pair.

    Raises: InvalidTaskDefinition with the path below `overrides`, or the rule that the outcome
        breaks.
    """
    if not overrides:
        return definition
    _check_length(overrides, policy)
    asked, malformed, refused = decode_shape(TaskOverride, overrides, "overrides", policy)
    _refuse([*malformed, *refused])
    assert isinstance(asked, TaskOverride)
    wire = to_wire(definition)
    by_name = {container["name"]: container for container in wire["containerDefinitions"]}
    for index, override in enumerate(asked.container_overrides):
        if override.name not in by_name:
            _refuse(
                [
                    problem(
                        f"overrides.containerOverrides[{index}].name",
                        f"Override for container named {override.name} is not a container in the "
                        "TaskDefinition.",
                        override.name, ", ".join(by_name),
                    )
                ]
            )  # fmt: skip
        _merge_container(by_name[override.name], override)
    given: dict[str, Any] = msgspec.to_builtins(asked)
    for member in ("cpu", "memory", "ephemeralStorage", "executionRoleArn", "taskRoleArn"):
        if given[member] is not None:
            wire[member] = given[member]
    return load_definition(wire, policy)
