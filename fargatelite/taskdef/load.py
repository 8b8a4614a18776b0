"""Reads a task definition from what people have: a dict, JSON text, or a file.

Taken are RegisterTaskDefinition requests, bare or as DescribeTaskDefinition prints them
(`{"taskDefinition": {...}}`, with the members that only the service adds).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from fargatelite.errors import InvalidTaskDefinition, StateCorrupt
from fargatelite.taskdef.decode import decode
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.problems import Problem, with_positions
from fargatelite.taskdef.rules import check_rules

__all__ = ["Source", "load_definition", "load_recorded", "to_wire"]

Source = Mapping[str, Any] | str | bytes | os.PathLike[str]

MAX_BYTES = 1024 * 1024  # the service takes 64 KiB (contract 8.4); pretty-printed files are larger

# Members that only the service adds to a stored definition (contract 2.1).
_STORED = (
    "taskDefinitionArn", "status", "requiresAttributes", "compatibilities", "registeredAt",
    "deregisteredAt", "deleteRequestedAt", "registeredBy",
)  # fmt: skip


def _not_json(name: str, detail: str) -> InvalidTaskDefinition:
    return InvalidTaskDefinition(
        f"{name} is not a JSON document: {detail}; a task definition is what "
        "`aws ecs describe-task-definition` prints"
    )


def _reject_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"member {key!r} is there twice")
        found[key] = value
    return found


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text, parse_constant=_reject_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _not_json(name, f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise _not_json(name, str(error)) from error


def _read(source: str | bytes | os.PathLike[str]) -> tuple[str, str]:
    """The text and what to call it."""
    if isinstance(source, bytes) or (isinstance(source, str) and source.lstrip()[:1] in ("{", "[")):
        data, name = source, "the definition"
    elif isinstance(source, str) and ("\n" in source or not source.strip()):
        data, name = (
            source,
            "the definition",
        )  # no path has a newline; the parser says what is wrong
    else:
        name = os.fspath(source)
        try:
            with open(name, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise InvalidTaskDefinition(
                f"cannot read task definition {name}: {getattr(error, 'strerror', None) or error}"
            ) from error
    if len(data) > MAX_BYTES:
        raise InvalidTaskDefinition(f"{name} has over {MAX_BYTES} bytes; that is no definition")
    if isinstance(data, bytes):
        try:
            return data.decode("utf-8-sig"), name
        except UnicodeDecodeError as error:
            raise _not_json(name, f"byte {error.start} is not UTF-8") from error
    return data, name


def _unwrap(document: Any, prefix: str = "") -> tuple[Any, str]:
    if isinstance(document, Mapping) and isinstance(document.get("taskDefinition"), Mapping):
        inner = dict(document["taskDefinition"])
        if isinstance(document.get("tags"), list):
            inner.setdefault("tags", document["tags"])
        return inner, "taskDefinition"
    return document, prefix


def _plain(value: Any) -> Any:
    """A definition given as dict may hold tuples and other Mappings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def load_definition(source: Source) -> TaskDefinition:
    """The checked definition.

    `source`: a dict, JSON text (it begins with `{`), bytes of JSON, or a path.
    Raises: InvalidTaskDefinition with every problem, in the order of the document, each with its
        JSON path and, for text, its line; the first is what the ECS service would report.
    """
    text: str | None = None
    if isinstance(source, Mapping):
        document: Any = _plain(source)
    elif isinstance(source, (str, bytes, os.PathLike)):
        text, name = _read(source)
        document = _parse(text, name)
        if not isinstance(document, dict):
            raise _not_json(name, "it is not an object")
    else:
        raise InvalidTaskDefinition(
            f"a task definition is a dict, JSON text or a path, not {type(source).__name__}"
        )
    document, prefix = _unwrap(document)
    if isinstance(document, dict) and any(member in document for member in _STORED):
        document = {key: value for key, value in document.items() if key not in _STORED}
    definition, problems = decode(document)
    if definition is not None:
        problems = problems + check_rules(definition)
    if problems:
        raise _invalid(problems, text, prefix)
    assert definition is not None
    return definition


def load_recorded(wire: Mapping[str, Any]) -> TaskDefinition:
    """A definition that was checked when it was recorded: rules of later versions do not apply, so
    that a task that ran stays describable.

    Raises: StateCorrupt when it has not the shape of a definition.
    """
    definition, problems = decode({key: value for key, value in wire.items() if key not in _STORED})
    if definition is None:
        raise StateCorrupt(f"a recorded task definition is damaged: {problems[0]}")
    return definition


def _invalid(problems: list[Problem], text: str | None, prefix: str) -> InvalidTaskDefinition:
    if text is not None:
        if prefix:
            moved = [
                msgspec.structs.replace(
                    problem, path=f"{prefix}.{problem.path}" if problem.path else prefix
                )
                for problem in problems
            ]
            problems = with_positions(moved, text)
        else:
            problems = with_positions(problems, text)
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidTaskDefinition(f"{first}{more}", problems=tuple(problems))


# What ECS echoes for a container although nobody wrote it (contract 2.1).
_ECHOED_LISTS = (
    "environment", "mountPoints", "portMappings", "volumesFrom", "systemControls",
)  # fmt: skip


def _drop_defaults(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item not in (None, [], {}, False, "")}


def to_wire(definition: TaskDefinition) -> dict[str, Any]:
    """The definition as DescribeTaskDefinition's `taskDefinition`, with the defaults that ECS
    echoes; `load_definition` of it gives the same definition."""
    raw: dict[str, Any] = msgspec.to_builtins(definition)
    wire = _drop_defaults(raw)
    wire["cpu"], wire["memory"] = str(definition.cpu_units), str(definition.memory_mib)
    wire["volumes"] = raw["volumes"]
    wire["placementConstraints"] = raw["placementConstraints"]
    wire["containerDefinitions"] = []
    for container, full in zip(definition.containers, raw["containerDefinitions"], strict=True):
        shown = _drop_defaults(full)
        shown["cpu"] = container.cpu_units
        shown["essential"] = container.essential
        if container.stop_timeout_s == 30:
            del shown["stopTimeout"]
        if container.health_check is not None:
            shown["healthCheck"] = full["healthCheck"]
        for member in _ECHOED_LISTS:
            shown[member] = full[member]
        shown["portMappings"] = [_echo_port(port) for port in full["portMappings"]]
        if "linuxParameters" in shown:
            linux = _drop_defaults(shown["linuxParameters"])
            if container.linux_parameters is not None and container.linux_parameters.capabilities:
                linux["capabilities"] = full["linuxParameters"]["capabilities"]
            shown["linuxParameters"] = linux
        wire["containerDefinitions"].append(shown)
    return wire


def _echo_port(port: dict[str, Any]) -> dict[str, Any]:
    echoed = _drop_defaults(port)
    if port["containerPort"] is not None:
        echoed["hostPort"] = port["containerPort"]
    return echoed
