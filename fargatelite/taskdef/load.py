"""Reads a task definition from what people have: a dict, JSON text, or a file.

Taken are RegisterTaskDefinition requests, bare or as DescribeTaskDefinition prints them
(`{"taskDefinition": {...}}`, with the members that only the service adds).
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from fargatelite.errors import InvalidTaskDefinition, StateCorrupt
from fargatelite.taskdef.decode import decode
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.launch_type import FARGATE, Policy
from fargatelite.taskdef.problems import Problem, with_positions
from fargatelite.taskdef.rules import check_rules

__all__ = ["Source", "load_definition", "load_recorded", "read_document", "to_wire"]

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


def _open_at_once(path: str, flags: int) -> int:
    """Does not wait for somebody to write to a FIFO (fifo(7)); one that a shell made for `<(...)`
    has its writer, and is read to its end."""
    fd = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    return fd


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
            with open(name, "rb", opener=_open_at_once) as file:
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


def _open(source: Source) -> tuple[dict[str, Any], str, str | None]:
    """The document, where it is within the text, and the text."""
    text: str | None = None
    if isinstance(source, Mapping):
        try:
            document: Any = _plain(source)
        except RecursionError:
            raise _not_json("the definition", "it is nested too deep") from None
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
    if any(member in document for member in _STORED):
        document = {key: value for key, value in document.items() if key not in _STORED}
    return document, prefix, text


def read_document(source: Source) -> dict[str, Any]:
    """The request within `source`, unchecked. Raises: InvalidTaskDefinition when it is no JSON."""
    return _open(source)[0]


def load_definition(source: Source, policy: Policy = FARGATE) -> TaskDefinition:
    """The definition, checked against what its launch type takes.

    `source`: a dict, JSON text (it begins with `{`), bytes of JSON, or a path.
    Raises: InvalidTaskDefinition with every problem, in the order of the document, each with its
        JSON path and, for text, its line; its `client_exception()` is what the ECS service would
        report, one problem alone.
    """
    document, prefix, text = _open(source)
    try:
        key = json.dumps(document), policy
    except (TypeError, ValueError, RecursionError):
        key = None  # not JSON, which the problems will say
    checked = _checked.get(key) if key is not None else None
    if checked is not None:
        return checked
    definition, malformed, refused = decode(document, policy)
    first, later = ([], []) if definition is None else check_rules(definition, policy)
    # The service's order: by shape, as boto3 before it sends; then as check_rules says. What has
    # not its shape is not looked at again.
    known = {problem.path for problem in malformed}
    problems = malformed + [
        problem for problem in (*first, *refused, *later) if problem.path not in known
    ]
    if problems:
        raise _invalid(problems, text, prefix)
    assert isinstance(definition, TaskDefinition)
    definition = _with_host_ports(definition)
    if key is not None:
        with _checked_lock:
            while len(_checked) >= _MAX_CHECKED:
                del _checked[next(iter(_checked))]
            _checked[key] = definition
    return definition


_checked: dict[tuple[str, Policy], TaskDefinition] = {}
"""Definitions that were good, by their JSON: who runs many tasks runs the same few."""
_MAX_CHECKED = 64
_checked_lock = threading.Lock()


def _with_host_ports(definition: TaskDefinition) -> TaskDefinition:
    """Under awsvpc the host's port is the container's, as a registration fills it in (contract
    2.1)."""
    if definition.network_mode != "awsvpc" or not any(
        container.port_mappings for container in definition.containers
    ):
        return definition
    containers = tuple(
        replace(
            container,
            port_mappings=tuple(
                replace(port, host_port=port.container_port) for port in container.port_mappings
            ),
        )
        for container in definition.containers
    )
    return replace(definition, containers=containers)


def load_recorded(wire: Mapping[str, Any]) -> TaskDefinition:
    """A definition that was checked when it was recorded: rules of later versions do not apply, so
    that a task that ran stays describable.

    Raises: StateCorrupt when it has not the shape of a definition.
    """
    return _load_encoded(msgspec.json.encode(wire))


@functools.lru_cache(maxsize=64)
def _load_encoded(data: bytes) -> TaskDefinition:
    wire = msgspec.json.decode(data)
    decoded = decode({key: value for key, value in wire.items() if key not in _STORED})
    if not isinstance(decoded.value, TaskDefinition):
        raise StateCorrupt(f"a recorded task definition is damaged: {decoded.malformed[0]}")
    return decoded.value


def _invalid(problems: list[Problem], text: str | None, prefix: str) -> InvalidTaskDefinition:
    """`problems` in the service's order."""
    if prefix:
        problems = [
            replace(problem, path=f"{prefix}.{problem.path}" if problem.path else prefix)
            for problem in problems
        ]
    reported = problems[0].message
    if text is not None:
        problems = with_positions(problems, text)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidTaskDefinition(
        f"{problems[0]}{more}", problems=tuple(problems), reported=reported
    )


# What ECS echoes for a container although nobody wrote it (contract 2.1).
_ECHOED_LISTS = (
    "environment", "mountPoints", "portMappings", "volumesFrom", "systemControls",
)  # fmt: skip


def _without_none(value: Any) -> Any:
    """Absent members are absent, and lists are lists as JSON has them."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value


def _drop_defaults(value: dict[str, Any]) -> dict[str, Any]:
    return {
        key: item
        for key, item in value.items()
        if item is not None and item is not False and item not in ([], {}, "")
    }


def to_wire(definition: TaskDefinition) -> dict[str, Any]:
    """The definition as DescribeTaskDefinition's `taskDefinition`, with the defaults that ECS
    echoes; `load_definition` of it gives the same definition."""
    raw: dict[str, Any] = _without_none(msgspec.to_builtins(definition))
    wire = _drop_defaults(raw)
    for member, size in (("cpu", definition.cpu_units), ("memory", definition.memory_mib)):
        wire.pop(member, None)
        if size:
            wire[member] = str(size)
    wire["volumes"] = [_echo_volume(volume) for volume in raw["volumes"]]
    wire["placementConstraints"] = raw["placementConstraints"]
    wire["containerDefinitions"] = []
    for container, full in zip(definition.containers, raw["containerDefinitions"], strict=True):
        shown = _drop_defaults(full)
        shown["cpu"] = container.cpu_units
        shown["essential"] = container.essential
        if container.stop_timeout_s == 30:
            del shown["stopTimeout"]
        for member in _ECHOED_LISTS:
            shown[member] = full[member]
        shown["portMappings"] = [_drop_defaults(port) for port in full["portMappings"]]
        if "linuxParameters" in shown:
            shown["linuxParameters"] = _drop_defaults(shown["linuxParameters"])
        wire["containerDefinitions"].append(shown)
    return wire


def _echo_volume(volume: dict[str, Any]) -> dict[str, Any]:
    echoed = _drop_defaults(volume)
    if len(echoed) == 1:
        echoed["host"] = {}  # as DescribeTaskDefinition has it for a volume that is only a name
    return echoed
