"""RunTask's `overrides` (contract 8.3): what a single run changes of its definition."""

from __future__ import annotations

import json
from typing import Any

from fargatelite.errors import InvalidTaskDefinition
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.load import load_definition, to_wire
from fargatelite.taskdef.problems import Problem

__all__ = ["MAX_OVERRIDES_CHARACTERS", "apply_overrides"]

MAX_OVERRIDES_CHARACTERS = 8192  # of the JSON form

_TASK_MEMBERS = ("cpu", "memory", "ephemeralStorage", "executionRoleArn", "taskRoleArn")
_CONTAINER_MEMBERS = ("command", "environment", "cpu", "memory", "memoryReservation")
_NOT_YET = ("environmentFiles", "resourceRequirements")


def _refuse(path: str, message: str, found: object = None, allowed: str | None = None) -> None:
    problem = Problem(
        path=path, message=message, found=None if found is None else str(found), allowed=allowed
    )
    raise InvalidTaskDefinition(f"{path}: {message}", problems=(problem,))


def _merge_container(wire: dict[str, Any], override: dict[str, Any], path: str) -> None:
    for member, value in override.items():
        where = f"{path}.{member}"
        if member == "name" or value is None:
            continue
        if member in _NOT_YET:
            if value:
                _refuse(where, f"not supported yet: {where}", value)
        elif member not in _CONTAINER_MEMBERS:
            _refuse(
                where, f'Unknown parameter in input: "{member}".', value,
                ", ".join(("name", *_CONTAINER_MEMBERS)),
            )  # fmt: skip
        elif member == "environment":
            # Adds, and replaces by name (contract 2.4).
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                _refuse(where, "Invalid type for parameter.", value, "a list of name and value")
            names = {item.get("name") for item in value}
            kept = [item for item in wire["environment"] if item["name"] not in names]
            wire["environment"] = kept + value
        else:
            wire[member] = value


def apply_overrides(definition: TaskDefinition, overrides: dict[str, Any] | None) -> TaskDefinition:
    """The definition of one run; sizes are checked again as a pair.

    Raises: InvalidTaskDefinition with the path below `overrides`, or the rule that the outcome
        breaks.
    """
    if not overrides:
        return definition
    length = len(json.dumps(overrides, separators=(",", ":"), default=str))
    if length > MAX_OVERRIDES_CHARACTERS:
        _refuse(
            "overrides", "Overrides are too long.", f"{length} characters",
            f"at most {MAX_OVERRIDES_CHARACTERS}",
        )  # fmt: skip
    wire = to_wire(definition)
    by_name = {container["name"]: container for container in wire["containerDefinitions"]}
    for member, value in overrides.items():
        if value is None:
            continue
        if member in _TASK_MEMBERS:
            wire[member] = value
        elif member == "inferenceAcceleratorOverrides" and not value:
            continue
        elif member != "containerOverrides":
            _refuse(
                f"overrides.{member}", f'Unknown parameter in input: "{member}".', value,
                ", ".join(("containerOverrides", *_TASK_MEMBERS)),
            )  # fmt: skip
        elif not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            _refuse("overrides.containerOverrides", "Invalid type for parameter.", value, "a list")
        else:
            for index, override in enumerate(value):
                path = f"overrides.containerOverrides[{index}]"
                target = by_name.get(override.get("name"))
                if target is None:
                    _refuse(
                        f"{path}.name",
                        f"Override for container named {override.get('name')} is not a container "
                        "in the TaskDefinition.",
                        override.get("name"), ", ".join(by_name),
                    )  # fmt: skip
                assert target is not None
                _merge_container(target, override, path)
    return load_definition(wire)
