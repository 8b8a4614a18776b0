"""Image references: `[registry/]repository[:tag][@digest]` (distribution/reference grammar)."""

from __future__ import annotations

import re

import msgspec

from fargatelite.errors import InvalidReference
from fargatelite.names import Digest, is_digest

__all__ = ["Reference", "parse_reference"]

DEFAULT_REGISTRY = "docker.io"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_REGISTRY = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?",
    re.ASCII,
)


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed reference; tag and digest may both be there, the digest then decides."""

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    @property
    def target(self) -> str:
        """What to ask the registry for."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """The parts of an image name; no tag means `latest`, no registry Docker Hub.

    Raises: InvalidReference.
    Source: contract 2.2; the first component is a registry when it has a dot, a colon or is
        `localhost`.
    """

    def refuse(why: str) -> InvalidReference:
        return InvalidReference(f"invalid image reference {text!r}: {why}")

    if not text or len(text) > 1024:
        raise refuse("it is empty or too long")
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise refuse(f"{digest!r} is no sha256 digest of 64 lower-case hex digits")
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.startswith("[")):
        registry, path = first, rest
    else:
        registry, path = DEFAULT_REGISTRY, name
    repository, colon, tag = path.partition(":")
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    if not _REGISTRY.fullmatch(registry):
        raise refuse(f"{registry!r} is no registry host")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise refuse(f"{repository!r} is no repository name")
    if colon and not _TAG.fullmatch(tag):
        raise refuse(f"{tag!r} is no tag")
    return Reference(
        registry=registry,
        repository=repository,
        tag=tag if colon else (None if at else "latest"),
        digest=Digest(digest) if at else None,
    )
