"""A role's temporary credentials as data."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Credentials"]


class Credentials(Struct, frozen=True, kw_only=True):
    """A task role's temporary credentials (contract 5.5)."""

    role_arn: str
    access_key_id: str
    secret_access_key: str
    token: str
    expires_at_ns: int

    def __repr__(self) -> str:
        """Without the secrets: a record ends up in tracebacks."""
        return f"Credentials({self.access_key_id})"
