"""What holds for every definition: valid ones are taken and come back, one fault is found at its
place, and nothing but InvalidTaskDefinition ever comes out."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given, settings
from hypothesis import strategies as st

from fargatelite.errors import InvalidTaskDefinition
from fargatelite.taskdef.decode import decode
from fargatelite.taskdef.explain import all_fields
from fargatelite.taskdef.launch_type import EC2
from fargatelite.taskdef.load import load_definition, to_wire
from fargatelite.taskdef.markers import NotYet, Recorded, Refused
from fargatelite.taskdef.overrides import apply_overrides
from tests.fixtures.definitions import FULL
from tests.unit.taskdef.generators import MUTATIONS, definitions

REQUEST = (
    botocore.session.get_session()
    .get_service_model("ecs")
    .shape_for("RegisterTaskDefinitionRequest")
)


@given(definitions())
def test_a_valid_definition_is_taken_and_comes_back(document: dict[str, Any]) -> None:
    loaded = load_definition(document)
    wire = to_wire(loaded)
    assert load_definition(wire) == loaded
    assert load_definition(json.dumps({"taskDefinition": wire})) == loaded
    assert to_wire(load_definition(wire)) == wire
    request = {key: value for key, value in wire.items() if key != "revision"}
    assert not ParamValidator().validate(request, REQUEST).has_errors()
    if document.get("requiresCompatibilities") != ["FARGATE"]:
        assert load_definition(document, EC2) == loaded


@pytest.mark.parametrize(
    ("kind", "spoil"), MUTATIONS, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(MUTATIONS)]
)
@settings(max_examples=8)
@given(document=definitions())
def test_one_fault_is_found_at_its_place(
    kind: str, spoil: Callable[[dict[str, Any]], str], document: dict[str, Any]
) -> None:
    spoilt = copy.deepcopy(document)
    path = spoil(spoilt)
    with pytest.raises(InvalidTaskDefinition) as caught:
        load_definition(spoilt)
    found = [problem.path for problem in caught.value.problems]  # type: ignore[attr-defined]
    assert path in found, (found, kind)
    message = caught.value.client_exception()["Error"]["Message"]
    assert message in [problem.message for problem in caught.value.problems]  # type: ignore[attr-defined]


def placed(path: str, value: Any) -> dict[str, Any]:
    """FULL with one member, named as in explain, set; lists get one item."""
    document = copy.deepcopy(FULL)
    node: Any = document
    *parents, last = path.split(".")
    for part in parents:
        name = part.removesuffix("[]")
        node = node.setdefault(name, [{}] if part.endswith("[]") else {})
        node = node[0] if part.endswith("[]") else node
    node[last] = value
    return document


SAMPLES = {
    "links": ["a"], "dnsServers": ["a"], "dnsSearchDomains": ["a"], "dockerSecurityOptions": ["a"],
    "credentialSpecs": ["a"], "hostname": "a", "disableNetworking": True, "privileged": True,
    "sharedMemorySize": 1, "maxSwap": 1, "swappiness": 1, "sourcePath": "/a",
    "configuredAtLaunch": True, "ipcMode": "task", "devices": [{"hostPath": "/dev/kvm"}],
    "extraHosts": [{"hostname": "a", "ipAddress": "192.0.2.1"}],
    "resourceRequirements": [{"type": "GPU"}], "placementConstraints": [{"type": "memberOf"}],
    "dockerVolumeConfiguration": {"scope": "task"},
    "fsxWindowsFileServerVolumeConfiguration": {
        "fileSystemId": "a", "rootDirectory": "b",
        "authorizationConfig": {"credentialsParameter": "a", "domain": "b"},
    },
    "s3filesVolumeConfiguration": {"fileSystemArn": "a"},
    "inferenceAccelerators": [{"deviceName": "a", "deviceType": "b"}],
    "trustedExecutionConfiguration": {"isolationMode": "SHARED"},
}  # fmt: skip
TOPS = [
    path
    for path, member in all_fields().items()
    if isinstance(member.marker, Refused)
    and not isinstance(
        getattr(all_fields().get(path.rpartition(".")[0].removesuffix("[]")), "marker", None),
        Refused,
    )
]


@pytest.mark.parametrize("path", TOPS)
def test_every_refused_member_is_refused_with_its_message(path: str) -> None:
    document = placed(path, SAMPLES[path.rpartition(".")[2]])
    marker = all_fields()[path].marker
    assert isinstance(marker, Refused)
    refused = [(item.path, item.message) for item in decode(document).refused]
    assert (path.replace("[]", "[0]"), marker.message) in refused


def values_at(node: Any, path: str) -> list[Any]:
    head, _, rest = path.partition(".")
    found = node.get(head.removesuffix("[]")) if isinstance(node, dict) else None
    if found is None:
        return []
    items = found if head.endswith("[]") else [found]
    return items if not rest else [value for item in items for value in values_at(item, rest)]


@pytest.mark.parametrize(
    "path", [path for path, item in all_fields().items() if isinstance(item.marker, Recorded)]
)
def test_what_is_recorded_is_shown_again(path: str) -> None:
    document = copy.deepcopy(FULL)
    for container in document["containerDefinitions"]:
        container["portMappings"] = [
            {"containerPortRange": "90-99", "protocol": "udp"},
            {"containerPort": 80, "hostPort": 80, "name": "web", "appProtocol": "http"},
        ]
    asked = values_at(document, path)
    decoded = decode(document)
    assert not decoded.malformed
    shown = values_at(to_wire(decoded.value), path)
    assert asked
    for value in asked:
        if not isinstance(value, (dict, list)):
            assert value in shown
    assert len(shown) >= len(asked)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=()), max_size=8), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """FULL with any one value replaced by any JSON, or any JSON."""
    document = copy.deepcopy(FULL)
    node: Any = document
    while True:
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        child = node[key]
        if isinstance(child, (dict, list)) and child and draw(st.booleans()):
            node = child
            continue
        node[key] = draw(_json)
        return document


def depth(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = {"a": [value]}
    return value


@settings(max_examples=300)
@given(spoilt() | _json)
def test_only_invalid_task_definition_comes_out(document: Any) -> None:
    sources = [document, json.dumps(document), json.dumps(document).encode()]
    for source in sources:
        if isinstance(source, str) and not source.startswith(("{", "[")):
            continue  # a path
        for arguments in ((source,), (source, EC2)):
            with contextlib.suppress(InvalidTaskDefinition):
                load_definition(*arguments)


@given(_json | st.dictionaries(st.sampled_from(["cpu", "memory", "containerOverrides"]), _json))
def test_nor_out_of_overrides(overrides: Any) -> None:
    minimal = {
        "family": "a", "networkMode": "awsvpc", "cpu": "256", "memory": "512",
        "containerDefinitions": [{"name": "app", "image": "i"}],
    }  # fmt: skip
    with contextlib.suppress(InvalidTaskDefinition):
        apply_overrides(load_definition(minimal), overrides)


@pytest.mark.parametrize("levels", [100, 5000])
def test_depth_and_digits(levels: int) -> None:
    for value in (depth(levels), 10**5000, -(10**5000)):
        for member in ("family", "cpu", "containerDefinitions", "volumes", "x"):
            with pytest.raises(InvalidTaskDefinition):
                load_definition({member: value})
            with pytest.raises(InvalidTaskDefinition):
                apply_overrides(decode(FULL).value, {"containerOverrides": value, member: value})


def test_what_is_not_yet_supported_says_so_with_its_path() -> None:
    for path, member in all_fields().items():
        if isinstance(member.marker, NotYet):
            container = path.split(".")[0].replace("[]", "[0]")
            assert any(
                item.message == f"not supported yet: {item.path}"
                and item.path.startswith(container.split("[")[0])
                for item in decode(FULL).refused
            ), path
