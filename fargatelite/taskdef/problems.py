"""A problem of a definition, and where in the user's text it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition

__all__ = ["Problem", "Problems", "each_container", "locate", "problem", "with_positions"]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One broken rule. `message` is what ECS says; `path` is the JSON path of the member."""

    path: str
    message: str
    found: str | None = None
    allowed: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = f" (line {self.line})" if self.line is not None else ""
        return f"{self.path or 'document'}{place}: {self.message}"


Problems = Iterator[Problem]


def problem(path: str, message: str, found: object = None, allowed: str | None = None) -> Problem:
    """A problem before its place in a text is known."""
    return Problem(
        path=path, message=message, found=None if found is None else str(found), allowed=allowed
    )


def each_container(definition: TaskDefinition) -> Iterator[tuple[str, ContainerDefinition]]:
    """The containers, each with its JSON path."""
    for index, container in enumerate(definition.containers):
        yield f"containerDefinitions[{index}]", container


_SPACE = re.compile(r"[ \t\n\r]*")
_decoder = json.JSONDecoder()


def locate(text: str) -> dict[str, int]:
    """The character offset of every value of a JSON text, by path (`a.b[0].c`).

    The text has been parsed before, so it is well-formed. Not recursive: depth is the sender's.
    """
    offsets: dict[str, int] = {}
    # Open containers: (path, kind, next index).
    stack: list[list[object]] = []
    at = 0
    path = ""

    def skip(position: int) -> int:
        match = _SPACE.match(text, position)
        return match.end() if match else position

    expects_value = True
    while True:
        at = skip(at)
        if at >= len(text):
            return offsets
        character = text[at]
        if expects_value:
            offsets.setdefault(path, at)
            expects_value = False
            if character == "{":
                stack.append([path, "object", 0])
                at += 1
            elif character == "[":
                stack.append([path, "array", 0])
                at += 1
                if text[skip(at)] != "]":
                    path, expects_value = f"{path}[0]", True
            else:
                _, at = _decoder.raw_decode(text, at)
            continue
        if not stack:
            return offsets
        parent, kind, index = stack[-1]
        if character in "}]":
            stack.pop()
            at += 1
        elif character == ",":
            at += 1
            if kind == "array":
                stack[-1][2] = int(str(index)) + 1
                path, expects_value = f"{parent}[{stack[-1][2]}]", True
        elif character == '"' and kind == "object":
            key, at = scanstring(text, at + 1, True)
            at = skip(at) + 1  # the colon
            path = f"{parent}.{key}" if parent else key
            expects_value = True
        else:
            return offsets


def _nearest(path: str, offsets: dict[str, int]) -> int | None:
    """The offset of the path, or of the nearest parent: a member that is missing has no place."""
    while path not in offsets:
        cut = max(path.rfind("."), path.rfind("["))
        if cut < 0:
            return offsets.get("")
        path = path[:cut]
    return offsets[path]


def with_positions(problems: list[Problem], text: str) -> list[Problem]:
    """The problems with line and column (from 1), in the order of the document."""
    offsets = locate(text)
    placed = []
    for problem in problems:
        offset = _nearest(problem.path, offsets)
        if offset is None:
            placed.append((0, problem))
            continue
        line = text.count("\n", 0, offset) + 1
        column = offset - (text.rfind("\n", 0, offset) + 1) + 1
        placed.append((offset, msgspec.structs.replace(problem, line=line, column=column)))
    return [problem for _, problem in sorted(placed, key=lambda pair: pair[0])]
