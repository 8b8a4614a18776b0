"""`fargatelite definition` as a process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.cli import CommandLine

EXAMPLES = Path(__file__).parents[3] / "examples"
ARN = "arn:aws:ecs:us-east-1:000000000000:task-definition/hello"


def register(fargatelite: CommandLine, *arguments: str | Path, **more: Any) -> dict[str, Any]:
    shown = fargatelite("definition", "register", *arguments, **more)
    assert shown.returncode == 0, shown.stderr
    answer: dict[str, Any] = json.loads(shown.stdout)
    return answer


def test_the_life_of_a_family(fargatelite: CommandLine) -> None:
    hello = EXAMPLES / "hello.json"
    assert register(fargatelite, hello)["taskDefinition"]["taskDefinitionArn"] == f"{ARN}:1"
    second = register(fargatelite, "-", input=hello.read_text())
    assert second["taskDefinition"]["revision"] == 2

    listed = fargatelite("definition", "list", "--output", "json")
    assert json.loads(listed.stdout) == {"taskDefinitionArns": [f"{ARN}:1", f"{ARN}:2"]}
    rows = fargatelite("definition", "list").stdout.splitlines()
    assert rows[0].split() == ["FAMILY", "REVISION", "ARN"]
    assert rows[2].split() == ["hello", "2", f"{ARN}:2"]

    for name in ("hello", "hello:2", f"{ARN}:2"):
        shown = fargatelite("definition", "describe", name)
        assert json.loads(shown.stdout) == second

    gone = json.loads(fargatelite("definition", "deregister", "hello:2").stdout)
    assert gone["taskDefinition"]["status"] == "INACTIVE"
    for arguments, arns in (
        (("--status", "INACTIVE"), [f"{ARN}:2"]),
        (("--family-prefix", "hello"), [f"{ARN}:1"]),
        (("--family-prefix", "hel"), []),
    ):
        listed = fargatelite("definition", "list", *arguments, "--output", "json")
        assert json.loads(listed.stdout)["taskDefinitionArns"] == arns

    refused = fargatelite("run", "hello:2")
    assert refused.returncode == 125
    assert refused.stderr.startswith("Error: TaskDefinition is inactive")
    assert fargatelite("definition", "validate", "hello:1").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("definition", "describe", "hello"), 125, "Unable to describe task definition."),
        (("definition", "deregister", "hello"), 125, "needs FAMILY:REVISION"),
        (("definition", "deregister", "hello:1"), 125, "Unable to describe task definition."),
        (("run", "hello"), 125, "no file 'hello', and no task definition of that name"),
        (("run", "hello:7"), 125, "no file 'hello:7', and no task definition of that name"),
        (("run", "hello.json"), 2, "no such file: hello.json"),
        (("run", "some/hello"), 2, "no such file: some/hello"),
        (("definition", "register", "hello.json"), 2, "no such file: hello.json"),
        (("definition", "explain", "nope"), 125, "no field is named 'nope'"),
        (("definition", "explain", "hostPath.x"), 125, "no field is named"),
    ],
)
def test_what_is_not_there(
    fargatelite: CommandLine, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    shown = fargatelite(*arguments)
    assert shown.returncode == code
    assert words in shown.stderr
    assert shown.stdout == ""


def test_an_invalid_definition_is_not_registered(fargatelite: CommandLine) -> None:
    shown = fargatelite("definition", "register", "-", input='{"family": "x"}')
    assert shown.returncode == 125
    assert 'Missing required parameter in input: "containerDefinitions"' in shown.stderr or (
        "Container list cannot be empty" in shown.stderr
    )
    assert fargatelite("definition", "list", "--output", "json").stdout.strip().endswith("}")
    listed = json.loads(fargatelite("definition", "list", "--output", "json").stdout)
    assert listed == {"taskDefinitionArns": []}


def test_explain(fargatelite: CommandLine) -> None:
    shown = fargatelite("definition", "explain", "healthCheck.interval").stdout
    assert "containerDefinitions[].healthCheck.interval" in shown
    assert "5 to 300 s" in shown
    assert "fargatelite.runtime.task.new_state (contract 3.7)" in shown
    shown = fargatelite("definition", "explain", "containerDefinitions[0].privileged").stdout
    assert "setting be ‘false’ at the container level." in shown
    document = json.loads(
        fargatelite("definition", "explain", "essential", "--output", "json").stdout
    )
    assert document["path"] == "containerDefinitions[].essential"
    assert (document["type"], document["default"], document["marker"]) == (
        "boolean", True, "effect",
    )  # fmt: skip
    ambiguous = fargatelite("definition", "explain", "name")
    assert ambiguous.returncode == 125
    assert "volumes[].name" in ambiguous.stderr


def test_validate_for_ec2(fargatelite: CommandLine) -> None:
    document = json.dumps(
        {
            "family": "own", "networkMode": "host",
            "containerDefinitions": [{"name": "c", "image": "i", "memory": 64, "privileged": True}],
        }
    )  # fmt: skip
    arguments = ("definition", "validate", "-", "--launch-type", "EC2")
    assert fargatelite("definition", "validate", "-", input=document).returncode == 125
    shown = fargatelite(*arguments, input=document)
    assert shown.returncode == 125
    assert "allow_privileged" in shown.stderr
    shown = fargatelite(*arguments, "--allow-privileged", input=document)
    assert (shown.returncode, shown.stdout) == (
        0, "-: valid: own, 1 container(s), no size of its own\n",
    )  # fmt: skip
    shown = fargatelite("definition", "validate", "-", "--output", "json", input=document)
    failure = json.loads(shown.stdout)["failures"][0]
    assert failure["clientException"] == "Fargate only supports network mode ‘awsvpc’."
    assert len(failure["problems"]) == 4
