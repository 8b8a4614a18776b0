"""fields.py against botocore's model of ECS: the same members, the same shapes, the same words."""

from __future__ import annotations

import copy
import importlib
import random
import types
import typing
from collections.abc import Iterator
from typing import Any

import botocore.model
import botocore.session
import msgspec
import pytest
from botocore.validate import ParamValidator

from fargatelite.taskdef.decode import decode, members
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.markers import Effect, NotYet, Recorded, Refused
from fargatelite.taskdef.overrides import TaskOverride
from tests.fixtures.definitions import FULL

MODEL = botocore.session.get_session().get_service_model("ecs")
OURS_ALONE = {"revision"}  # of a stored definition; never of a request
NOT_ENUMERATIONS = {
    "protocol": "any other text is TCP (contract 2.3)",
    "logDriver": "refused with a message of its own (contract 2.9)",
    "operatingSystemFamily": "refused with a message of its own",
}


def inner(kind: Any) -> Any:
    """The type below `| None`, tuples and dicts."""
    while origin := typing.get_origin(kind):
        arguments = [item for item in typing.get_args(kind) if item is not type(None)]
        if origin in (tuple, types.UnionType, typing.Union):
            kind = arguments[0]
        else:
            return kind
    return kind


def pairs(
    theirs: botocore.model.StructureShape, ours: type[msgspec.Struct], path: str = ""
) -> Iterator[tuple[str, botocore.model.StructureShape, type[msgspec.Struct]]]:
    """Each structure of the model beside ours."""
    yield path, theirs, ours
    for name, shape in theirs.members.items():
        if name not in members(ours):
            continue
        kind = members(ours)[name].type
        if shape.type_name == "list":
            shape = shape.member
        if shape.type_name == "structure":
            found = inner(kind)
            assert isinstance(found, type), f"{path}.{name}"
            assert issubclass(found, msgspec.Struct), f"{path}.{name} is {found}"
            yield from pairs(shape, found, f"{path}.{name}")


ALL = [
    *pairs(MODEL.shape_for("RegisterTaskDefinitionRequest"), TaskDefinition),
    *pairs(MODEL.shape_for("TaskOverride"), TaskOverride, "overrides"),
]


@pytest.mark.parametrize(("path", "theirs", "ours"), ALL, ids=[item[0] or "root" for item in ALL])
def test_the_members_are_the_models(
    path: str, theirs: botocore.model.StructureShape, ours: type[msgspec.Struct]
) -> None:
    assert set(members(ours)) - (OURS_ALONE if not path else set()) == set(theirs.members)
    for name, shape in theirs.members.items():
        member = members(ours)[name]
        where = f"{path}.{name}"
        assert isinstance(member.marker, (Effect, Refused, Recorded, NotYet)), where
        values = shape.member if shape.type_name == "list" else shape
        allowed = tuple(getattr(values, "enum", ()) or ())
        if name in NOT_ENUMERATIONS:
            assert allowed, where
            allowed = ()
        if where == ".containerDefinitions.linuxParameters.devices.permissions":
            assert set(member.values) == {"read", "write", "mknod"}
        else:
            assert member.values == allowed, where
        expected = {
            "string": str, "integer": int, "boolean": bool, "list": tuple, "map": dict,
            "structure": msgspec.Struct,
        }[shape.type_name]  # fmt: skip
        kind = next(a for a in (*typing.get_args(member.type), member.type) if a is not type(None))
        if typing.get_origin(member.type) in (tuple, dict):
            kind = member.type
        kind = typing.get_origin(kind) or kind
        if not path and name in ("cpu", "memory"):
            expected = int  # strings on the wire, of several spellings
        assert issubclass(kind, expected), where


def test_every_effect_names_a_function_that_exists() -> None:
    seen = set()
    for _, _, ours in ALL:
        for member in members(ours).values():
            for marker in (member.marker, getattr(member.marker, "on_ec2", None)):
                if isinstance(marker, Effect):
                    seen.add(marker.function)
    for dotted in sorted(seen):
        parts = dotted.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found: Any = importlib.import_module("fargatelite." + ".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for name in parts[cut:]:
                found = getattr(found, name)
            break
        assert callable(found), dotted


def mutated(random_: random.Random) -> dict[str, Any]:
    """FULL with one thing wrong by shape."""
    document = copy.deepcopy(FULL)
    nodes: list[Any] = [document]
    for node in nodes:
        nodes += [
            child
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list)) and child
        ]
    node = random_.choice(nodes)
    key = random_.choice(list(node) if isinstance(node, dict) else range(len(node)))
    if isinstance(node, dict) and random_.random() < 0.3:
        node[f"{key}x"] = node.pop(key)
    else:
        node[key] = random_.choice([7, "text", [], {}, ["a"], {"a": "b"}, 1.5, [3]])
    return document


def test_required_members_are_the_models() -> None:
    for path, theirs, ours in ALL:
        required = {name for name, member in members(ours).items() if member.required}
        assert required == set(theirs.required_members), path


def test_what_the_model_refuses_is_refused_in_botocores_words() -> None:
    shape = MODEL.shape_for("RegisterTaskDefinitionRequest")
    random_ = random.Random(1)
    checked = 0
    for _ in range(1500):
        document = mutated(random_)
        report = ParamValidator().validate(document, shape)
        theirs = sorted(
            line.partition(", must be one of")[0] for line in report.generate_report().splitlines()
        )
        # Of a string that is an enumeration elsewhere, or a number of the size, boto3 knows less.
        ours = sorted(
            problem.message.partition(", must be one of")[0]
            for problem in decode(document).malformed
            if "failed to satisfy constraint" not in problem.message
            and "setting for task" not in problem.message
        )
        if document.get("cpu") == 7 or document.get("memory") == 7:
            continue  # an int for a size is taken, as people write it
        assert ours == theirs, document
        checked += bool(theirs)
    assert checked > 800
