"""Which ids a container's process gets: `user` against the image's /etc/passwd and /etc/group.

Docker's rules (contract 4.4) with a narrow grammar for numbers: what a 32-bit parse could wrap to
root is refused (CVE-2024-40635, CVE-2026-46680), and an all-digit word is never a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from fargatelite.errors import SandboxFailed

__all__ = ["MAX_ID", "User", "resolve_user"]

MAX_ID = 65534
"""The highest id of a container: 65,536 ids are mapped, and 65535 reads as -1 in 16-bit calls."""

_NUMBER = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_LOOKS_NUMERIC = re.compile(r"[-+]?[0-9][0-9a-fA-FxX]*", re.ASCII)
_MAX_GROUPS = 1024  # the shim's bound; Linux has NGROUPS_MAX 65536


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Ids inside the container. `groups` are supplementary; `home` is never empty."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


class _Account(msgspec.Struct, frozen=True):
    name: str
    uid: int
    gid: int
    home: str


def _id(text: str) -> int | None:
    if len(text) > 10 or not _NUMBER.fullmatch(text):
        return None
    return int(text)


def _accounts(passwd: bytes) -> Iterator[_Account]:
    """Well-formed lines of a passwd file; others are skipped, as getpwent(3) does."""
    for line in passwd.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.split(":")
        if len(fields) >= 7:
            uid, gid = _id(fields[2]), _id(fields[3])
            if fields[0] and uid is not None and gid is not None:
                yield _Account(fields[0], uid, gid, fields[5])


def _groups(group: bytes) -> Iterator[tuple[str, int, list[str]]]:
    for line in group.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.split(":")
        if len(fields) >= 4:
            gid = _id(fields[2])
            if fields[0] and gid is not None:
                yield fields[0], gid, [name for name in fields[3].split(",") if name]


def _check(kind: str, number: int, spec: str) -> int:
    if number > MAX_ID:
        raise SandboxFailed(
            f"user {spec!r}: {kind} {number} is outside 0..{MAX_ID}, the ids of a task; "
            "choose a smaller id"
        )
    return number


def _numeric(kind: str, word: str, spec: str) -> int | None:
    number = _id(word)
    if number is not None:
        return _check(kind, number, spec)
    if _LOOKS_NUMERIC.fullmatch(word):
        raise SandboxFailed(
            f"user {spec!r}: {word!r} is neither a decimal {kind} in 0..{MAX_ID} nor a name"
        )
    return None


def resolve_user(spec: str, passwd: bytes, group: bytes) -> User:
    """The ids for `spec`: `user`, `user:group`, `uid`, `uid:gid`, `user:gid`, `uid:group` or empty.

    A number needs no entry (its group is then 0); a name does. Supplementary groups come from the
    image's group file, and only when `spec` names no group.

    Raises: SandboxFailed for an unknown name or an id out of range.
    Source: contract 2.2 `user`, 4.4; moby/runc `GetExecUser` behaviour.
    """
    user_word, colon, group_word = spec.partition(":")
    if (colon and not group_word) or ":" in group_word:
        raise SandboxFailed(f"user {spec!r} is not of the form user[:group]")
    user_word = user_word or "0"
    uid = _numeric("uid", user_word, spec)
    account = next(
        (
            entry
            for entry in _accounts(passwd)
            if (entry.uid == uid if uid is not None else entry.name == user_word)
        ),
        None,
    )
    if uid is None:
        if account is None:
            raise SandboxFailed(
                f"unable to find user {user_word}: no matching entries in passwd file"
            )
        uid = _check("uid", account.uid, spec)
    home = account.home if account is not None and account.home.startswith("/") else "/"

    if group_word:
        gid = _numeric("gid", group_word, spec)
        if gid is None:
            found = next((entry for entry in _groups(group) if entry[0] == group_word), None)
            if found is None:
                raise SandboxFailed(
                    f"unable to find group {group_word}: no matching entries in group file"
                )
            gid = _check("gid", found[1], spec)
        return User(uid=uid, gid=gid, home=home)

    gid = _check("gid", account.gid, spec) if account is not None else 0
    groups: list[int] = []
    if account is not None:
        for _, number, members in _groups(group):
            if account.name in members and number not in groups:
                groups.append(_check("gid", number, spec))
    if len(groups) > _MAX_GROUPS:
        raise SandboxFailed(
            f"user {spec!r} is in {len(groups)} groups of the image; at most {_MAX_GROUPS}"
        )
    return User(uid=uid, gid=gid, groups=tuple(groups), home=home)
