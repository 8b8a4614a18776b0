"""Where a field takes effect, for people: fields.py and the texts of compatibility.toml put
together. Nothing here is on the way of a task.

A field's name is its path on the wire with `[]` for lists: `containerDefinitions[].ulimits[].name`.
"""

from __future__ import annotations

import functools
import re
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fargatelite.errors import UnknownField
from fargatelite.taskdef.decode import Member, members
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.markers import Effect, Marker, NotYet, Recorded, Refused

__all__ = ["Explanation", "all_fields", "explain", "find_fields"]

TEXTS = Path(__file__).parent / "compatibility.toml"
_TYPES = {str: "string", int: "integer", bool: "boolean", dict: "map of strings"}


class Explanation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All that is known of a field. `marker` is effect, refused, recorded or notYet; of the others
    only that one's members are set."""

    path: str
    type: str
    required: bool
    default: Any
    values: tuple[str, ...]
    fargate: str
    marker: str
    function: str | None = None
    contract: str | None = None
    message: str | None = None
    reason: str | None = None
    ec2: str | None = None


@functools.cache
def texts() -> dict[str, str]:
    """What Fargate does with each field, from contract 2, with its limits."""
    found: dict[str, str] = tomllib.loads(TEXTS.read_text())
    return found


def _walk(shape: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, Member]]:
    for member in members(shape).values():
        kind, is_list = member.type, False
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(item for item in typing.get_args(kind) if item is not type(None))
        if typing.get_origin(kind) is tuple:
            kind, is_list = typing.get_args(kind)[0], True
        path = f"{prefix}{member.wire}"
        yield path, member
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from _walk(kind, f"{path}[]." if is_list else f"{path}.")


@functools.cache
def all_fields() -> dict[str, Member]:
    """Every field by path, in the order of fields.py; `revision` is of stored definitions alone."""
    return {path: member for path, member in _walk(TaskDefinition, "") if path != "revision"}


def _plain(name: str) -> str:
    return re.sub(r"\[\d*\]", "", name)


def find_fields(name: str) -> list[str]:
    """The paths that `name` may mean: a whole path, else every path that ends with it. Brackets may
    be left out."""
    wanted = _plain(name)
    whole = [path for path in all_fields() if _plain(path) == wanted]
    return whole or [path for path in all_fields() if _plain(path).endswith(f".{wanted}")]


def _type_name(member: Member) -> str:
    kind = member.type
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(item for item in typing.get_args(kind) if item is not type(None))
    if member.wire in ("cpu", "memory") and member.attribute in ("cpu_units", "memory_mib"):
        return "integer"
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return f"list of {_TYPES.get(inner, 'object')}s"
    return _TYPES.get(typing.get_origin(kind) or kind, "object")


def describe_marker(marker: Marker) -> str:
    """A marker in a few words."""
    match marker:
        case Effect(function=function, contract=contract):
            return f"{function} (contract {contract})"
        case Recorded(reason=reason):
            return f"kept and shown: {reason}"
        case Refused(message=message):
            return f"refused: {message}"
        case _:
            return "not supported yet"


def explain(name: str) -> Explanation:
    """The field of that name.

    Raises: UnknownField, with all that it may mean.
    """
    found = find_fields(name)
    if not found:
        raise UnknownField(
            f"no field is named {name!r}; docs/fargate-compatibility.md lists all of them"
        )
    if len(found) > 1:
        raise UnknownField(f"{name!r} may be any of: {', '.join(found)}")
    path = found[0]
    member, marker = all_fields()[path], all_fields()[path].marker
    default = msgspec.to_builtins(member.default)
    is_size = path in ("cpu", "memory")
    return Explanation(
        path=path,
        type="string" if is_size else _type_name(member),
        required=member.required or is_size,
        default=None if is_size else default,
        values=member.values,
        fargate=texts()[path],
        marker={Effect: "effect", Refused: "refused", Recorded: "recorded", NotYet: "notYet"}[
            type(marker)
        ],
        function=f"fargatelite.{marker.function}" if isinstance(marker, Effect) else None,
        contract=marker.contract if isinstance(marker, Effect) else None,
        message=marker.message if isinstance(marker, Refused) else None,
        reason=marker.reason if isinstance(marker, Recorded) else None,
        ec2=describe_marker(marker.on_ec2) if isinstance(marker, Refused) else None,
    )
