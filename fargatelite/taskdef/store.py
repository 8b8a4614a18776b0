"""Registered task definitions: families and their revisions, on disk, as ECS keeps them.

::

    <data root>/definitions/<family>/
        .lock          flock(2) held by whoever registers or deregisters
        <revision>.json  {"version": 1, "taskDefinition": {...}, "tags": [...]}

A revision's file appears whole (written aside, then renamed) and is never removed, so the highest
one there is the highest ever used, and no number is used twice (contract 2.1). Its text is what
DescribeTaskDefinition would answer. Readers take no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fargatelite import names
from fargatelite.errors import (
    InvalidTaskDefinition,
    StateCorrupt,
    TaskDefinitionInactive,
    TaskDefinitionNotFound,
)
from fargatelite.rundir import ensure_private_directory, replace_file
from fargatelite.settings import Settings
from fargatelite.taskdef.attributes import required_attributes
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.launch_type import FARGATE, policy_for
from fargatelite.taskdef.load import Source, load_definition, read_document, to_wire

__all__ = ["DefinitionStore", "Identifier", "find_source", "parse_identifier"]

FORMAT_VERSION = 1

_FAMILY = r"[A-Za-z0-9_-]{1,255}"
_IDENTIFIER = re.compile(
    rf"(?:arn:aws[a-z-]*:ecs:[a-z0-9-]+:\d{{12}}:task-definition/)?({_FAMILY})(?::(\d{{1,9}}))?",
    re.ASCII,
)


class Identifier(NamedTuple):
    """A family, and a revision or None for the latest that is ACTIVE."""

    family: str
    revision: int | None

    def __str__(self) -> str:
        return self.family if self.revision is None else f"{self.family}:{self.revision}"


def parse_identifier(text: str) -> Identifier | None:
    """`family`, `family:revision` or an ARN; None for anything else (contract 2.10)."""
    match = _IDENTIFIER.fullmatch(text)
    if match is None:
        return None
    return Identifier(match[1], int(match[2]) if match[2] is not None else None)


class DefinitionStore:
    """The host's registered definitions. Methods may be called from any thread and process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.definitions

    def register(self, source: Source) -> dict[str, Any]:
        """RegisterTaskDefinition: a new revision, even of an equal definition; its answer.

        A definition is held to Fargate's rules unless its `requiresCompatibilities` leave FARGATE
        out (contract 2.1).
        Raises: InvalidTaskDefinition.
        """
        document = read_document(source)
        asked = document.get("requiresCompatibilities") if isinstance(document, dict) else None
        is_for_fargate = not isinstance(asked, list) or not asked or "FARGATE" in asked
        definition = load_definition(
            source,
            policy_for("FARGATE" if is_for_fargate else "EC2", self._settings,
                       allow_privileged=not is_for_fargate),
        )  # fmt: skip
        directory = self._root / definition.family
        ensure_private_directory(Path(self._settings.data_root))
        ensure_private_directory(self._root)
        ensure_private_directory(directory)
        with self._locked(directory):
            revision = max(self._revisions(directory), default=0) + 1
            stored = self._compose(definition, revision, time.time())
            self._publish(directory, revision, stored)
        return stored

    def _compose(self, definition: TaskDefinition, revision: int, now: float) -> dict[str, Any]:
        wire = to_wire(definition)
        tags = wire.pop("tags", [])
        settings = self._settings
        for container in wire["containerDefinitions"]:
            check = container.get("healthCheck")
            if check is not None and not check.get("startPeriod"):
                check.pop("startPeriod", None)
        wire |= {
            "taskDefinitionArn": names.task_definition_arn(
                settings.region, settings.account, definition.family, revision
            ),
            "revision": revision,
            "status": "ACTIVE",
            "requiresAttributes": required_attributes(definition),
            "compatibilities": self._compatibilities(definition),
            "registeredAt": round(now, 3),
            "registeredBy": f"arn:aws:iam::{settings.account}:root",
        }
        return {"taskDefinition": wire, "tags": tags}

    def _compatibilities(self, definition: TaskDefinition) -> list[str]:
        free_of_wish = {**to_wire(definition), "requiresCompatibilities": []}
        try:
            load_definition(free_of_wish, FARGATE)
        except InvalidTaskDefinition:
            return ["EC2", "MANAGED_INSTANCES"]
        return ["EC2", "MANAGED_INSTANCES", "FARGATE"]

    def describe(self, text: str) -> dict[str, Any]:
        """DescribeTaskDefinition: `{"taskDefinition": ..., "tags": [...]}`, of inactive ones too.

        Raises: TaskDefinitionNotFound.
        """
        wanted = self._parse(text)
        directory = self._root / wanted.family
        if wanted.revision is not None:
            return self._read(directory, wanted.revision, str(wanted))
        for revision in sorted(self._revisions(directory), reverse=True):
            found = self._read(directory, revision, str(wanted))
            if found["taskDefinition"]["status"] == "ACTIVE":
                return found
        raise _missing(str(wanted))

    def find_active(self, text: str) -> dict[str, Any]:
        """What a task may be started from: its `taskDefinition`, with `tags`.

        Raises: TaskDefinitionNotFound; TaskDefinitionInactive.
        """
        found = self.describe(text)
        definition: dict[str, Any] = found["taskDefinition"]
        if definition["status"] != "ACTIVE":
            raise TaskDefinitionInactive(
                f"TaskDefinition is inactive: {definition['family']}:{definition['revision']} was "
                "deregistered; run another revision"
            )
        return {**definition, "tags": found["tags"]}

    def deregister(self, text: str) -> dict[str, Any]:
        """DeregisterTaskDefinition: INACTIVE from now on; its answer. May be repeated.

        Raises: TaskDefinitionNotFound, also for a family without revision.
        """
        wanted = self._parse(text)
        if wanted.revision is None:
            raise TaskDefinitionNotFound(
                f"Missing revision: deregistering needs FAMILY:REVISION, not {text!r}"
            )
        directory = self._root / wanted.family
        self._read(directory, wanted.revision, str(wanted))
        with self._locked(directory):
            stored = self._read(directory, wanted.revision, str(wanted))
            definition = stored["taskDefinition"]
            if definition["status"] == "ACTIVE":
                definition["status"] = "INACTIVE"
                definition["deregisteredAt"] = round(time.time(), 3)
                replace_file(self._file(directory, wanted.revision), _encode(stored), sync=True)
        return {"taskDefinition": definition}

    def list_arns(
        self, family: str | None = None, status: str = "ACTIVE", *, descending: bool = False
    ) -> list[str]:
        """ListTaskDefinitions: ARNs by family and revision; `family` is the whole family's name,
        as ECS takes `familyPrefix` (contract 8.3)."""
        arns: list[str] = []
        for directory in sorted(self._root.iterdir()) if self._root.is_dir() else []:
            if family is not None and directory.name != family:
                continue
            for revision in sorted(self._revisions(directory)):
                found = self._read(directory, revision, directory.name)["taskDefinition"]
                if found["status"] == status:
                    arns.append(found["taskDefinitionArn"])
        return arns[::-1] if descending else arns

    def _parse(self, text: str) -> Identifier:
        identifier = parse_identifier(text)
        if identifier is None:
            raise TaskDefinitionNotFound(
                f"{text!r} names no task definition: expected FAMILY, FAMILY:REVISION or an ARN"
            )
        return identifier

    @contextlib.contextmanager
    def _locked(self, directory: Path) -> Iterator[None]:
        fd = os.open(
            directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @staticmethod
    def _file(directory: Path, revision: int) -> Path:
        return directory / f"{revision}.json"

    @staticmethod
    def _revisions(directory: Path) -> list[int]:
        if not directory.is_dir():
            return []
        return [int(path.stem) for path in directory.glob("*.json") if path.stem.isdecimal()]

    def _publish(self, directory: Path, revision: int, stored: dict[str, Any]) -> None:
        replace_file(self._file(directory, revision), _encode(stored), sync=True)
        # The number is given out: the name must survive a power loss as the content does.
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _read(self, directory: Path, revision: int, wanted: str) -> dict[str, Any]:
        path = self._file(directory, revision)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise _missing(wanted) from error
        with open(fd, "rb") as file:
            data = file.read()
        try:
            content = json.loads(data)
            version = content["version"]
            definition, tags = dict(content["taskDefinition"]), list(content["tags"])
            _ = definition["status"], definition["taskDefinitionArn"], definition["revision"]
        except (ValueError, KeyError, TypeError) as error:
            raise StateCorrupt(f"{path} is no registered task definition", path=path) from error
        if version != FORMAT_VERSION:
            raise StateCorrupt(
                f"{path} has version {version}, this program reads {FORMAT_VERSION}", path=path
            )
        return {"taskDefinition": definition, "tags": tags}


def _missing(wanted: str) -> TaskDefinitionNotFound:
    return TaskDefinitionNotFound(
        f"Unable to describe task definition. {wanted} is not registered on this host; "
        "`fargatelite definition list` shows what is"
    )


def _encode(stored: dict[str, Any]) -> bytes:
    return json.dumps({"version": FORMAT_VERSION, **stored}, indent=1).encode() + b"\n"


def _is_path(text: str) -> bool:
    if text.startswith("arn:"):
        return False
    return "/" in text or text.endswith(".json") or os.path.exists(text)


def find_source(settings: Settings, source: Source) -> Source:
    """`source`, or the registered definition that it names.

    A path wins: what exists, has a slash, or ends with .json.
    Raises: TaskDefinitionNotFound, saying that there is no file either; TaskDefinitionInactive.
    """
    if not isinstance(source, str) or not source or source.lstrip()[:1] in ("{", "["):
        return source
    if "\n" in source or "\0" in source or _is_path(source):
        return source
    try:
        return DefinitionStore(settings).find_active(source)
    except TaskDefinitionNotFound as error:
        raise TaskDefinitionNotFound(
            f"no file {source!r}, and no task definition of that name is registered; "
            "`fargatelite definition list` shows what is"
        ) from error
