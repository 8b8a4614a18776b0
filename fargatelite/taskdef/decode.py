"""From a JSON document to the structs of fields.py, with every problem of shape, not the first.

What the service's model refuses by shape is said in botocore's words, as boto3 would before it
sends anything; values that no enumeration has, in the words of the service's front end.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.launch_type import FARGATE, Policy
from fargatelite.taskdef.markers import Marker, NotYet, OneOf, Refused, Required
from fargatelite.taskdef.problems import Problem
from fargatelite.taskdef.sizes import parse_cpu, parse_memory

__all__ = ["Decoded", "Member", "decode", "decode_shape", "members"]

_ENCODED_INT_LIMIT = 2**31  # the service's Integer is 32 bits


class Member(typing.NamedTuple):
    """One member of a shape: its wire name, attribute, type, marker, values, and default."""

    wire: str
    attribute: str
    type: Any
    marker: Marker
    values: tuple[str, ...]
    default: Any
    required: bool
    has_default: bool


class Decoded(typing.NamedTuple):
    """`value` is None when its shape is beyond use. `malformed` are problems of shape, `refused`
    members that the launch type does not take."""

    value: Any
    malformed: list[Problem]
    refused: list[Problem]


@functools.cache
def members(shape: type[msgspec.Struct]) -> dict[str, Member]:
    """The members of a shape by wire name."""
    hints = get_type_hints(shape, include_extras=True)
    found = {}
    for info in msgspec.structs.fields(shape):
        base, marker, *more = get_args(hints[info.name])
        default = None
        if info.default is not msgspec.NODEFAULT:
            default = info.default
        elif info.default_factory is not msgspec.NODEFAULT:
            default = info.default_factory()
        values = next((item.values for item in more if isinstance(item, OneOf)), ())
        found[info.encode_name] = Member(
            info.encode_name,
            info.name,
            base,
            marker,
            values,
            default,
            info.required or Required() in more,
            not info.required,
        )
    return found


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=not isinstance(value, str) or not value.isprintable())
    except (ValueError, RecursionError, TypeError):
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else text[:77] + "..."


class _Decoder:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.malformed: list[Problem] = []
        self.refused: list[Problem] = []
        self.refused_depth = 0

    def report(self, path: str, message: str, value: object, allowed: str | None = None) -> None:
        self.malformed.append(
            Problem(path=path, message=message, found=_shown(value), allowed=allowed)
        )

    def wrong_type(self, path: str, value: object, *expected: type) -> None:
        """botocore's words (botocore/validate.py)."""
        try:
            text = str(value)
        except (ValueError, RecursionError):  # an int of thousands of digits
            text = "..."
        text = text if len(text) <= 200 else text[:197] + "..."
        self.report(
            path,
            f"Invalid type for parameter {path or 'input'}, value: {text}, type: {type(value)}, "
            f"valid types: {', '.join(str(kind) for kind in expected)}",
            value,
        )

    def value(self, path: str, kind: Any, value: Any) -> Any:
        """The value as `kind`, or None after a problem was reported."""
        origin = get_origin(kind)
        if origin is types.UnionType or origin is typing.Union:
            return self.value(path, next(a for a in get_args(kind) if a is not type(None)), value)
        if origin is tuple:
            if not isinstance(value, list):
                self.wrong_type(path, value, list, tuple)
                return None
            items = [
                self.value(f"{path}[{index}]", get_args(kind)[0], item)
                for index, item in enumerate(value)
            ]
            return tuple(item for item in items if item is not None)
        if origin is dict:
            if not isinstance(value, dict):
                self.wrong_type(path, value, dict)
                return None
            return {
                key: item
                for key, item in value.items()
                if self.value(f"{path} (key: {key})", str, key) is not None
                and self.value(f"{path}.{key}", str, item) is not None
            }
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.shape(path, kind, value)
        if kind is int:
            if isinstance(value, bool) or not isinstance(value, int):
                self.wrong_type(path, value, int)
                return None
            if abs(value) >= _ENCODED_INT_LIMIT:
                self.report(
                    path, f"Invalid value for parameter {path}: a number of 32 bits is expected",
                    value,
                )  # fmt: skip
                return None
            return value
        if not isinstance(value, kind):
            self.wrong_type(path, value, kind)
            return None
        if kind is str and not _is_text(value):
            self.report(
                path, f"Invalid value for parameter {path}: no NUL, no half of a surrogate pair",
                value,
            )  # fmt: skip
            return None
        return value

    def size(self, member: Member, path: str, value: Any) -> int | None:
        """Task cpu and memory: strings of several spellings (contract 1)."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            self.wrong_type(path, value, str)
            return None
        parse = parse_cpu if member.wire == "cpu" else parse_memory
        # An int is what a person writes; only boto3 minds.
        parsed = None
        if isinstance(value, str) or 0 <= value < _ENCODED_INT_LIMIT:
            parsed = parse(str(value))
        if parsed is None or parsed >= _ENCODED_INT_LIMIT:
            self.report(
                path,
                f"Invalid '{member.wire}' setting for task. For more information, see the "
                "Troubleshooting section of the Amazon ECS Developer Guide.",
                value,
                "like 256 or .25 vCPU" if member.wire == "cpu" else "like 512 or 0.5 GB",
            )
            return None
        return parsed

    def shape(self, path: str, shape: type[msgspec.Struct], raw: Any) -> Any:
        if not isinstance(raw, dict):
            self.wrong_type(path, raw, dict)
            return None
        known = members(shape)
        values: dict[str, Any] = {}
        complete = True
        for wire, value in raw.items():
            where = f"{path}.{wire}" if path else str(wire)
            member = known.get(wire)
            if member is None:
                self.report(
                    where,
                    f'Unknown parameter in {path or "input"}: "{wire}", must be one of: '
                    f"{', '.join(known)}",
                    value,
                )
                continue
            if value is None:
                continue  # as absent
            decoded = self.member(shape, member, where, value)
            if decoded is None:
                complete = complete and member.has_default
            # Nothing where there need be nothing is the same as absent.
            elif member.default is not None or member.required or not _is_nothing(decoded):
                values[member.attribute] = decoded
        for member in known.values():
            if member.required and member.attribute not in values:
                complete = complete and member.has_default
                if raw.get(member.wire) is None:
                    self.malformed.append(
                        Problem(
                            path=f"{path}.{member.wire}" if path else member.wire,
                            message=f"Missing required parameter in {path or 'input'}: "
                            f'"{member.wire}"',
                        )
                    )
        return shape(**values) if complete else None

    def member(self, shape: type[msgspec.Struct], member: Member, path: str, value: Any) -> Any:
        marker = self.policy.marker(member.marker)
        is_refused = isinstance(marker, (Refused, NotYet))
        # What is refused is named once, at its top.
        self.refused_depth += is_refused
        if shape is TaskDefinition and member.wire in ("cpu", "memory"):
            decoded = self.size(member, path, value)
        else:
            decoded = self.value(path, member.type, value)
        self.refused_depth -= is_refused
        if decoded is None:
            return None
        if member.values:
            self.check_values(member, path, decoded)
        if self.refused_depth or decoded == member.default or decoded in ((), {}, False, ""):
            return decoded
        if isinstance(marker, Refused):
            self.refused.append(Problem(path=path, message=marker.message, found=_shown(value)))
        elif isinstance(marker, NotYet):
            self.refused.append(
                Problem(path=path, message=f"not supported yet: {path}", found=_shown(value))
            )
        return decoded

    def check_values(self, member: Member, path: str, decoded: Any) -> None:
        is_list = isinstance(decoded, tuple)
        for index, item in enumerate(decoded if is_list else (decoded,)):
            if item not in member.values and item != "":
                where = f"{path}[{index}]" if is_list else path
                self.report(
                    where,
                    f"Value '{item}' at '{where}' failed to satisfy constraint: Member must "
                    f"satisfy enum value set: [{', '.join(member.values)}]",
                    item,
                    ", ".join(member.values),
                )


def _is_nothing(decoded: Any) -> bool:
    """An empty list, text, or object (`host: {}`, as ECS shows a volume that is only a name)."""
    if isinstance(decoded, msgspec.Struct):
        return not any(
            getattr(decoded, name) != members(type(decoded))[wire].default
            for name, wire in zip(
                decoded.__struct_fields__, decoded.__struct_encode_fields__, strict=True
            )
        )
    return decoded in ((), "")


def _is_text(value: str) -> bool:
    if "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_shape(shape: type[msgspec.Struct], raw: Any, path: str, policy: Policy) -> Decoded:
    """A document as `shape`, whose place in a larger one is `path`."""
    decoder = _Decoder(policy)
    value = decoder.shape(path, shape, raw)
    return Decoded(value, decoder.malformed, decoder.refused)


def decode(raw: Any, policy: Policy = FARGATE) -> Decoded:
    """The definition and all problems of shape."""
    return decode_shape(TaskDefinition, raw, "", policy)
