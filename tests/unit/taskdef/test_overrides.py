"""RunTask's overrides: what a run changes, and that the outcome is checked again (contract 8.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fargatelite.errors import InvalidTaskDefinition
from fargatelite.settings import BeyondFargate, Settings
from fargatelite.taskdef.decode import members
from fargatelite.taskdef.fields import ContainerDefinition
from fargatelite.taskdef.launch_type import policy_for
from fargatelite.taskdef.load import load_definition
from fargatelite.taskdef.markers import NotYet
from fargatelite.taskdef.overrides import apply_overrides

ROLE = "arn:aws:iam::000000000000:role/other"


def document(**container: Any) -> dict[str, Any]:
    return {
        "family": "app",
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "executionRoleArn": "arn:aws:iam::000000000000:role/first",
        "containerDefinitions": [
            {"name": "app", "image": "i", **container},
            {"name": "side", "image": "i", "command": ["stay"]},
        ],
    }


def on(**override: Any) -> dict[str, Any]:
    return {"containerOverrides": [{"name": "app", **override}]}


def test_of_the_task() -> None:
    run = apply_overrides(
        load_definition(document()),
        {
            "cpu": ".5 vCPU", "memory": "1 GB", "ephemeralStorage": {"sizeInGiB": 50},
            "executionRoleArn": ROLE, "taskRoleArn": ROLE, "inferenceAcceleratorOverrides": [],
        },
    )  # fmt: skip
    assert (run.cpu_units, run.memory_mib, run.ephemeral_storage_gib) == (512, 1024, 50)
    assert (run.execution_role_arn, run.task_role_arn) == (ROLE, ROLE)


def test_of_a_container() -> None:
    loaded = load_definition(
        document(command=["old"], environment=[{"name": n, "value": n} for n in "ABC"], memory=64)
    )
    run = apply_overrides(
        loaded,
        on(command=["new", "er"], cpu=100, memory=128, memoryReservation=100,
           environment=[{"name": "B", "value": "2"}, {"name": "D", "value": ""}]),
    )  # fmt: skip
    app, side = run.containers
    assert app.command == ("new", "er")
    assert (app.cpu_units, app.memory_mib, app.memory_reservation_mib) == (100, 128, 100)
    assert [(item.name, item.value) for item in app.environment] == [
        ("A", "A"), ("C", "C"), ("B", "2"), ("D", ""),
    ]  # fmt: skip
    assert side == loaded.containers[1]


def test_environment_files_replace() -> None:
    """Where they are supported; else the path says that they are not."""
    files = [{"value": f"arn:aws:s3:::bucket/{name}.env", "type": "s3"} for name in "ab"]
    asked = on(environmentFiles=files[1:])
    if isinstance(members(ContainerDefinition)["environmentFiles"].marker, NotYet):
        with pytest.raises(InvalidTaskDefinition, match=r"not supported yet: .*environmentFiles"):
            apply_overrides(load_definition(document()), asked)
        return
    run = apply_overrides(load_definition(document(environmentFiles=files[:1])), asked)
    assert [item.value for item in run.containers[0].environment_files] == [files[1]["value"]]


def test_nothing_asked_changes_nothing() -> None:
    loaded = load_definition(document())
    for nothing in (None, {}, {"containerOverrides": []}, on(), {"cpu": None}):
        assert apply_overrides(loaded, nothing) == loaded


@pytest.mark.parametrize(
    ("overrides", "path", "message"),
    [
        ({"containerOverrides": [{"name": "ghost"}]}, "overrides.containerOverrides[0].name",
         "Override for container named ghost is not a container in the TaskDefinition."),
        ({"containerOverrides": [{"command": ["x"]}]}, "overrides.containerOverrides[0].name",
         "Override for container named None is not a container in the TaskDefinition."),
        ({"cpu": "512"}, "memory", "No Fargate configuration exists for given values: 512 CPU, "
         "512 memory. See the Amazon ECS documentation for the valid values."),
        ({"cpu": "x"}, "cpu", "Invalid 'cpu' setting for task. For more information, see the "
         "Troubleshooting section of the Amazon ECS Developer Guide."),
        ({"image": "x"}, "overrides.image", 'Unknown parameter in overrides: "image", must be one '
         "of: containerOverrides, cpu, memory, ephemeralStorage, executionRoleArn, taskRoleArn, "
         "inferenceAcceleratorOverrides"),
        (on(entryPoint=["x"]), "overrides.containerOverrides[0].entryPoint",
         'Unknown parameter in overrides.containerOverrides[0]: "entryPoint", must be one of: '
         "name, command, environment, environmentFiles, cpu, memory, memoryReservation, "
         "resourceRequirements"),
        (on(command="x"), "overrides.containerOverrides[0].command",
         "Invalid type for parameter overrides.containerOverrides[0].command, value: x, type: "
         "<class 'str'>, valid types: <class 'list'>, <class 'tuple'>"),
        (on(memory=1024), "containerDefinitions[0].memory",
         "The 'memory' setting for container 'app' is greater than for the task"),
        (on(cpu=512), "containerDefinitions",
         "The sum of all container 'cpu' values cannot be greater than the value of the task "
         "'cpu'."),
        (on(resourceRequirements=[{"type": "GPU", "value": "1"}]),
         "overrides.containerOverrides[0].resourceRequirements",
         "Tasks using the Fargate launch type do not support GPU resource requirements."),
        ({"ephemeralStorage": {"sizeInGiB": 20}}, "ephemeralStorage.sizeInGiB",
         "EphemeralStorage size should be at least 21"),
    ],
)  # fmt: skip
def test_refusals(overrides: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(InvalidTaskDefinition) as caught:
        apply_overrides(load_definition(document()), overrides)
    problems = [(item.path, item.message) for item in caught.value.problems]  # type: ignore[attr-defined]
    assert (path, message) in problems
    assert caught.value.client_exception()["Error"]["Message"] == message


def test_8192_characters_and_not_one_more() -> None:
    def of_length(length: int) -> dict[str, Any]:
        asked = on(command=["é"])
        padding = length - len(json.dumps(asked, separators=(",", ":"), ensure_ascii=False))
        return on(command=["é" + "x" * padding])

    loaded = load_definition(document())
    assert apply_overrides(loaded, of_length(8192)).containers[0].command is not None
    with pytest.raises(InvalidTaskDefinition, match="8193 characters, 8192 are allowed"):
        apply_overrides(loaded, of_length(8193))
    granted = Settings(beyond_fargate=BeyondFargate(overrides_over_8192=True))
    apply_overrides(loaded, of_length(20000), policy_for("FARGATE", granted))
