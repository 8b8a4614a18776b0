"""Definitions in, frozen records out; all problems at once, each with its place."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.errors import FargateliteError, InvalidTaskDefinition
from fargatelite.taskdef.launch_type import EC2
from fargatelite.taskdef.load import load_definition, to_wire

EXAMPLES = Path(__file__).parents[3] / "examples"

MINIMAL: dict[str, Any] = {
    "family": "app",
    "networkMode": "awsvpc",
    "cpu": "256",
    "memory": "512",
    "containerDefinitions": [{"name": "app", "image": "busybox"}],
}


def changed(**more: Any) -> dict[str, Any]:
    return {**copy.deepcopy(MINIMAL), **more}


def with_container(**more: Any) -> dict[str, Any]:
    return changed(containerDefinitions=[{"name": "app", "image": "busybox", **more}])


def problems_of(document: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidTaskDefinition) as caught:
        load_definition(document)
    return [(problem.path, problem.message) for problem in caught.value.problems]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    loaded = load_definition(path)
    stored = load_definition(to_wire(loaded))
    assert load_definition(to_wire(stored)) == stored


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        (changed(cpu="1024", memory="1024"), "memory",
         "No Fargate configuration exists for given values: 1024 CPU, 1024 memory. See the Amazon "
         "ECS documentation for the valid values."),
        (changed(cpu=None), "cpu", "Fargate requires that 'cpu' be defined at the task level."),
        (changed(networkMode="bridge"), "networkMode",
         "Fargate only supports network mode ‘awsvpc’."),
        (changed(containerDefinitions=[]), "containerDefinitions",
         "Container list cannot be empty"),
        (with_container(essential=False), "containerDefinitions",
         "Task definition doesn't have any essential container"),
        (with_container(privileged=True), "containerDefinitions[0].privileged",
         "Fargate requires that the ‘privileged’ setting be ‘false’ at the container level."),
        (with_container(links=["x"]), "containerDefinitions[0].links",
         "Links are not supported when networkMode=awsvpc."),
        (with_container(stopTimeout=121), "containerDefinitions[0].stopTimeout",
         "Tasks using the Fargate launch type must have a container stop timeout of less than 120 "
         "seconds."),
        (with_container(linuxParameters={"capabilities": {"add": ["NET_ADMIN"]}}),
         "containerDefinitions[0].linuxParameters.capabilities.add[0]",
         "NET_ADMIN is not allowed on Fargate."),
        (with_container(healthCheck={"command": ["CMD", "x"], "interval": 301}),
         "containerDefinitions[0].healthCheck.interval",
         "Health check interval must be less than or equal to the maximum allowed value 300 for "
         "container 'app'"),
        (with_container(dependsOn=[{"containerName": "nope", "condition": "START"}]),
         "containerDefinitions[0].dependsOn[0].containerName",
         "Cannot depend on container + 'nope' because it does not exist"),
        (with_container(memory=1024), "containerDefinitions[0].memory",
         "The 'memory' setting for container 'app' is greater than for the task"),
        (with_container(memory=100, memoryReservation=200),
         "containerDefinitions[0].memoryReservation",
         "Invalid setting for container 'app'. 'memory' must be greater than or equal to "
         "'memoryReservation'."),
        (changed(ephemeralStorage={"sizeInGiB": 20}), "ephemeralStorage.sizeInGiB",
         "EphemeralStorage size should be at least 21"),
        (with_container(portMappings=[{"containerPort": 80, "hostPort": 81}]),
         "containerDefinitions[0].portMappings[0].hostPort",
         "When networkMode=awsvpc, the host ports and container ports in port mappings must "
         "match."),
        (with_container(image="123456789012.dkr.ecr.us-east-1.amazonaws.com/a:1"),
         "containerDefinitions[0].image",
         "Fargate requires task definition to have execution role ARN to support ECR images."),
        (changed(volumes=[{"name": "v", "host": {"sourcePath": "/srv"}}]),
         "volumes[0].host.sourcePath",
         "Fargate compatible task definitions do not support sourcePath"),
        (with_container(secrets=[{"name": "A", "valueFrom": "b"}]),
         "containerDefinitions[0].secrets",
         "When you are specifying container secrets, you must also specify a value for "
         "'executionRoleArn'"),
        (with_container(secrets=[{"name": "A", "valueFrom": "arn:aws:s3:::b/c"}]),
         "containerDefinitions[0].secrets[0].valueFrom", "Invalid arn syntax."),
        (with_container(secrets=[{"name": "A", "valueFrom": "b"}],
                        environment=[{"name": "A", "value": "c"}]),
         "containerDefinitions[0].secrets[0].name",
         "The secret name must be unique and not shared with any new or existing environment "
         "variables set on the container, such as 'A'."),
        (with_container(environmentFiles=[{"type": "s3", "value": "arn:aws:s3:::b/c.txt"}]),
         "containerDefinitions[0].environmentFiles[0].value",
         "The environment file must have the extension .env."),
        (with_container(environmentFiles=[{"type": "s3", "value": "s3://b/c.env"}]),
         "containerDefinitions[0].environmentFiles[0].value", "Invalid arn syntax."),
        (with_container(environmentFiles=[{"type": "s3", "value": "arn:aws:s3:::b/c.env"}] * 11),
         "containerDefinitions[0].environmentFiles",
         "The maximum number of environment files was exceeded. Specify ten or less and try "
         "again."),
        (with_container(repositoryCredentials={"credentialsParameter": "arn:aws:s3:::b/c"}),
         "containerDefinitions[0].repositoryCredentials.credentialsParameter",
         "Invalid arn syntax."),
        (with_container(cpu="1"), "containerDefinitions[0].cpu",
         "Invalid type for parameter containerDefinitions[0].cpu, value: 1, type: <class 'str'>, "
         "valid types: <class 'int'>"),
        (with_container(versionConsistency="maybe"), "containerDefinitions[0].versionConsistency",
         "Value 'maybe' at 'containerDefinitions[0].versionConsistency' failed to satisfy "
         "constraint: Member must satisfy enum value set: [enabled, disabled]"),
        (changed(proxyConfiguration={"containerName": "x"}), "proxyConfiguration.containerName",
         "Proxy container 'x' is not a container in the TaskDefinition."),
    ],
)  # fmt: skip
def test_refusals(document: dict[str, Any], path: str, message: str) -> None:
    assert (path, message) in problems_of(document)


def test_a_cycle_is_found() -> None:
    containers = [
        {"name": a, "image": "i", "dependsOn": [{"containerName": b, "condition": "START"}]}
        for a, b in (("a", "b"), ("b", "c"), ("c", "a"))
    ]
    assert any("cycle" in text for _, text in problems_of(changed(containerDefinitions=containers)))


def test_a_ring_of_dependencies_and_volumes_is_found() -> None:
    """Each would wait for the other: for volumesFrom the source is made first."""
    first = {"name": "a", "image": "i", "volumesFrom": [{"sourceContainer": "b"}]}
    second = {
        "name": "b", "image": "i", "dependsOn": [{"containerName": "a", "condition": "START"}],
    }  # fmt: skip
    assert problems_of(changed(containerDefinitions=[first, second])) == [
        ("containerDefinitions[0].dependsOn", "Container dependencies must not form a cycle.")
    ]
    second["dependsOn"] = []
    assert load_definition(changed(containerDefinitions=[first, second]))


def test_values_equal_to_the_default_ask_for_nothing() -> None:
    load_definition(
        changed(volumes=[], placementConstraints=[], containerDefinitions=[{
            "name": "app", "image": "i", "privileged": False, "secrets": [], "mountPoints": [],
            "interactive": False, "hostname": "", "dockerLabels": {}, "logConfiguration": None,
        }])
    )  # fmt: skip


def test_lines_and_order_are_the_documents() -> None:
    text = json.dumps({**with_container(stopTimeout=300), "networkMode": "host", "x": 1}, indent=1)
    with pytest.raises(InvalidTaskDefinition) as caught:
        load_definition(text)
    lines = [problem.line for problem in caught.value.problems]  # type: ignore[attr-defined]
    assert lines == sorted(lines)
    for problem in caught.value.problems:
        member = problem.path.rpartition(".")[2]  # type: ignore[attr-defined]
        assert f'"{member}"' in text.splitlines()[problem.line - 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{", "line 1, column 2"),
        ('{"family": "a",}', "line 1"),
        ('{"a": 1, "a": 2}', "is there twice"),
        ("[1]", "it is not an object"),
        ("/nonexistent/file.json", "No such file"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("", "is not a JSON document"),
    ],
)
def test_what_is_no_definition(source: Any, words: str) -> None:
    with pytest.raises(InvalidTaskDefinition, match=words):
        load_definition(source)


def test_what_describe_task_definition_prints_is_accepted() -> None:
    stored = {
        **MINIMAL,
        "taskDefinitionArn": "arn:aws:ecs:us-east-1:1:task-definition/app:3",
        "revision": 3,
        "status": "ACTIVE",
        "requiresAttributes": [{"name": "x"}],
        "compatibilities": ["EC2", "FARGATE"],
        "registeredAt": 1.0,
        "registeredBy": "me",
        "volumes": [],
    }
    assert load_definition({"taskDefinition": stored, "tags": []}).revision == 3


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """A valid definition with any one value replaced by any JSON."""
    document = json.loads((EXAMPLES / "web-and-probe.json").read_text())
    node: Any = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        child = node[key]
        if isinstance(child, (dict, list)) and child and draw(st.booleans()):
            node = child
            continue
        node[key] = draw(_json)
        return document


@given(mutations())
def test_no_input_gives_a_traceback(document: Any) -> None:
    for source in (document, json.dumps(document)):
        with contextlib.suppress(FargateliteError):
            load_definition(source)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        # By shape, before anything else.
        ({**with_container(privileged=True), "networkMode": "host", "cpu": []},
         "Invalid type for parameter cpu, value: [], type: <class 'list'>, valid types: "
         "<class 'str'>"),
        # Memory before the task's size (contract 1).
        ({"family": "a", "containerDefinitions": [{"name": "a", "image": "i"}],
          "networkMode": "awsvpc"},
         "Invalid setting for container 'a'. At least one of 'memory' or 'memoryReservation' must "
         "be specified."),
        ({"family": "a", "networkMode": "awsvpc",
          "containerDefinitions": [{"name": "a", "image": "i", "memory": 64}]},
         "Fargate requires that 'cpu' be defined at the task level."),
        # The network mode before what it excludes, and that before sizes and the rest.
        ({**with_container(links=["a"]), "networkMode": "bridge", "cpu": "1"},
         "Fargate only supports network mode ‘awsvpc’."),
        ({**with_container(links=["a"], stopTimeout=500), "cpu": "1"},
         "Links are not supported when networkMode=awsvpc."),
        ({**with_container(stopTimeout=500), "cpu": "1"},
         "No Fargate configuration exists for given values: 1 CPU, 512 memory. See the Amazon ECS "
         "documentation for the valid values."),
    ],
)  # fmt: skip
def test_what_the_service_reports_first(document: dict[str, Any], message: str) -> None:
    for source in (document, json.dumps(document), json.dumps({"taskDefinition": document})):
        with pytest.raises(InvalidTaskDefinition) as caught:
            load_definition(source)
        assert caught.value.client_exception() == {
            "Error": {"Code": "ClientException", "Message": message}
        }


@pytest.mark.field("requiresCompatibilities")
def test_a_definition_that_is_not_for_the_launch_type() -> None:
    ec2 = changed(requiresCompatibilities=["EC2"])
    assert ("requiresCompatibilities", "Task definition does not support launch_type FARGATE.") in (
        problems_of(ec2)
    )
    assert load_definition(ec2, EC2).requires_compatibilities == ("EC2",)
    with pytest.raises(InvalidTaskDefinition, match="does not support launch_type EC2"):
        load_definition(changed(requiresCompatibilities=["FARGATE"]), EC2)


@pytest.mark.field("runtimePlatform.operatingSystemFamily")
def test_windows_is_refused() -> None:
    document = changed(runtimePlatform={"operatingSystemFamily": "WINDOWS_SERVER_2022_CORE"})
    assert problems_of(document) == [
        (
            "runtimePlatform.operatingSystemFamily",
            "operatingSystemFamily is not supported on this host.",
        )
    ]
