"""What becomes of a member of a task definition: the four answers that a line of fields.py gives,
and the values that a member may have."""

from __future__ import annotations

import msgspec

__all__ = [
    "Effect",
    "Marker",
    "NotYet",
    "OneOf",
    "Recorded",
    "Refused",
    "Required",
    "unsupported",
]


class Effect(msgspec.Struct, frozen=True):
    """Takes effect in this function (module below `fargatelite`, dotted)."""

    function: str
    contract: str = "2.2"


class Recorded(msgspec.Struct, frozen=True):
    """Kept and shown; the reason says why there is nothing to do."""

    reason: str


class NotYet(msgspec.Struct, frozen=True):
    """Not supported yet: using it is an error that names its path."""


class Refused(msgspec.Struct, frozen=True):
    """Fargate refuses the field with this message. `on_ec2` says what the launch type EC2 does with
    it here: an Effect, or a refusal with a message of its own."""

    message: str
    on_ec2: Effect | Recorded | Refused | NotYet = NotYet()


Marker = Effect | Refused | Recorded | NotYet


class OneOf(msgspec.Struct, frozen=True):
    """The values of an enumeration of the service's model; others are refused by shape."""

    values: tuple[str, ...]


class Required(msgspec.Struct, frozen=True):
    """Must be there; its default only lets the other rules look on when it is not."""


_NOT_YET = NotYet()


def unsupported(member: str, on_ec2: Effect | Recorded | Refused | NotYet = _NOT_YET) -> Refused:
    """Fargate's refusal of a member of its own name (contract 2.9)."""
    return Refused(f"Fargate compatible task definitions do not support {member}", on_ec2)
