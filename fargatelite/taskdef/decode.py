"""From a JSON document to the structs of fields.py, with every problem of shape, not the first."""

from __future__ import annotations

import functools
import types
import typing
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from fargatelite.taskdef.fields import NotYet, Refused, TaskDefinition
from fargatelite.taskdef.problems import Problem
from fargatelite.taskdef.sizes import parse_cpu, parse_memory

__all__ = ["Member", "decode", "members"]

_JSON_NAMES = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    tuple: "a list",
}
_ENCODED_INT_LIMIT = 2**31  # the service's Integer is 32 bits


class Member(typing.NamedTuple):
    """One member of a shape: its wire name, attribute, type, marker, and default."""

    wire: str
    attribute: str
    type: Any
    marker: object
    default: Any
    required: bool


@functools.cache
def members(shape: type[msgspec.Struct]) -> dict[str, Member]:
    """The members of a shape by wire name."""
    hints = get_type_hints(shape, include_extras=True)
    found = {}
    for info in msgspec.structs.fields(shape):
        annotated = hints[info.name]
        base, *markers = get_args(annotated)
        required = info.required
        default = None
        if info.default is not msgspec.NODEFAULT:
            default = info.default
        elif info.default_factory is not msgspec.NODEFAULT:
            default = info.default_factory()
        found[info.encode_name] = Member(
            info.encode_name, info.name, base, markers[0], default, required
        )
    return found


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode("utf-8", "replace")
    return text if len(text) <= 80 else text[:77] + "..."


class _Decoder:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def report(self, path: str, message: str, value: object, allowed: str | None = None) -> None:
        self.problems.append(
            Problem(path=path, message=message, found=_shown(value), allowed=allowed)
        )

    def wrong_type(self, path: str, value: object, expected: str) -> None:
        self.report(path, "Invalid type for parameter.", value, expected)

    def value(self, path: str, kind: Any, value: Any) -> Any:
        """The value as `kind`, or None after a problem was reported."""
        origin = get_origin(kind)
        if origin is types.UnionType or origin is typing.Union:
            return self.value(path, next(a for a in get_args(kind) if a is not type(None)), value)
        if origin is tuple:
            if not isinstance(value, list):
                return self.wrong_type(path, value, "a list")
            items = [
                self.value(f"{path}[{index}]", get_args(kind)[0], item)
                for index, item in enumerate(value)
            ]
            return tuple(item for item in items if item is not None)
        if origin is dict:
            if not isinstance(value, dict):
                return self.wrong_type(path, value, "an object")
            if get_args(kind)[1] is str:
                for key, item in value.items():
                    if not isinstance(item, str):
                        self.wrong_type(f"{path}.{key}", item, "a string")
            return value
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.shape(path, kind, value)
        if kind is int:
            if isinstance(value, bool) or not isinstance(value, int):
                return self.wrong_type(path, value, "a whole number")
            if abs(value) >= _ENCODED_INT_LIMIT:
                return self.wrong_type(path, value, "a number of 32 bits")
            return value
        if kind in (str, bool) and not isinstance(value, kind):
            return self.wrong_type(path, value, _JSON_NAMES[kind])
        if kind is str and "\0" in value:
            return self.wrong_type(path, value, "a string without NUL")
        return value

    def size(self, member: Member, path: str, value: Any) -> int | None:
        """Task cpu and memory: strings of several spellings (contract 1)."""
        parse = parse_cpu if member.wire == "cpu" else parse_memory
        parsed = parse(str(value)) if isinstance(value, (str, int)) and value is not True else None
        if parsed is None:
            self.report(
                path,
                f"Invalid '{member.wire}' setting for task. For more information, see the "
                "Troubleshooting section of the Amazon ECS Developer Guide.",
                value,
                "like 256 or .25 vCPU" if member.wire == "cpu" else "like 512 or 0.5 GB",
            )
        return parsed

    def shape(self, path: str, shape: type[msgspec.Struct], raw: Any) -> Any:
        if not isinstance(raw, dict):
            return self.wrong_type(path, raw, "an object")
        known = members(shape)
        values: dict[str, Any] = {}
        complete = True
        for wire, value in raw.items():
            where = f"{path}.{wire}" if path else wire
            member = known.get(wire)
            if member is None:
                self.report(where, f'Unknown parameter in input: "{wire}".', value,
                            ", ".join(sorted(known)))  # fmt: skip
                continue
            if value is None:
                continue  # as absent
            if shape is TaskDefinition and wire in ("cpu", "memory"):
                decoded = self.size(member, where, value)
            else:
                decoded = self.value(where, member.type, value)
            if decoded is None:
                complete = complete and not member.required
                continue
            self.check_marker(member, where, decoded, value)
            values[member.attribute] = decoded
        for member in known.values():
            if member.required and member.attribute not in values:
                complete = False
                if member.wire not in raw:
                    where = f"{path}.{member.wire}" if path else member.wire
                    self.problems.append(
                        Problem(path=where, message=f'Missing required parameter: "{member.wire}".')
                    )
        return shape(**values) if complete else None

    def check_marker(self, member: Member, path: str, decoded: Any, raw: Any) -> None:
        if decoded == member.default or decoded in ((), {}, False, ""):
            return
        if isinstance(member.marker, Refused):
            self.report(path, member.marker.message, raw)
        elif isinstance(member.marker, NotYet):
            self.report(path, f"not supported yet: {path}", raw)


def decode(raw: Any) -> tuple[TaskDefinition | None, list[Problem]]:
    """The definition (None when its shape is beyond use) and all problems of shape."""
    decoder = _Decoder()
    definition = decoder.shape("", TaskDefinition, raw)
    return definition, decoder.problems
