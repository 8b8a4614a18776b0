"""Families and revisions on disk, in ECS's shapes (contract 2.1, 2.10)."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import botocore.parsers
import botocore.session
import pytest

from fargatelite.errors import (
    InvalidTaskDefinition,
    StateCorrupt,
    TaskDefinitionInactive,
    TaskDefinitionNotFound,
)
from fargatelite.settings import Settings
from fargatelite.taskdef.decode import decode
from fargatelite.taskdef.load import load_definition
from fargatelite.taskdef.store import DefinitionStore, find_source, parse_identifier
from tests.fixtures.definitions import FULL

MODEL = botocore.session.get_session().get_service_model("ecs")
ARN = "arn:aws:ecs:us-east-1:000000000000:task-definition/app"


def document(**more: Any) -> dict[str, Any]:
    return {
        "family": "app",
        "networkMode": "awsvpc",
        "cpu": ".25 vCPU",
        "memory": "0.5GB",
        "containerDefinitions": [
            {"name": "app", "image": "busybox", "portMappings": [{"containerPort": 80}],
             "healthCheck": {"command": ["CMD", "x"]}},
        ],
        "tags": [{"key": "team", "value": "blue"}],
        **more,
    }  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_root=str(tmp_path / "data"), run_root=str(tmp_path / "run"))


@pytest.fixture
def store(settings: Settings) -> DefinitionStore:
    return DefinitionStore(settings)


def parsed(operation: str, answer: dict[str, Any]) -> dict[str, Any]:
    """What boto3 would make of the answer; members that it does not know are lost."""
    parser = botocore.parsers.create_parser(MODEL.metadata["protocol"])
    found: dict[str, Any] = parser.parse(
        {"status_code": 200, "headers": {}, "body": json.dumps(answer).encode()},
        MODEL.operation_model(operation).output_shape,
    )
    del found["ResponseMetadata"]
    return found


def members_of(value: Any) -> Any:
    """The document without its scalars."""
    if isinstance(value, dict):
        return {key: members_of(item) for key, item in value.items()}
    return [members_of(item) for item in value] if isinstance(value, list) else None


def test_the_answer_is_what_ecs_answers(store: DefinitionStore) -> None:
    answer = store.register(document())
    definition = answer["taskDefinition"]
    assert definition["taskDefinitionArn"] == f"{ARN}:1"
    assert (definition["revision"], definition["status"]) == (1, "ACTIVE")
    assert (definition["cpu"], definition["memory"]) == ("256", "512")
    assert definition["compatibilities"] == ["EC2", "MANAGED_INSTANCES", "FARGATE"]
    assert {"name": "ecs.capability.task-eni"} in definition["requiresAttributes"]
    assert {"name": "ecs.capability.container-health-check"} in definition["requiresAttributes"]
    assert definition["registeredBy"] == "arn:aws:iam::000000000000:root"
    assert (definition["volumes"], definition["placementConstraints"]) == ([], [])
    container = definition["containerDefinitions"][0]
    assert {name: container[name] for name in ("cpu", "essential", "environment", "mountPoints",
            "volumesFrom", "systemControls")} == {
        "cpu": 0, "essential": True, "environment": [], "mountPoints": [], "volumesFrom": [],
        "systemControls": [],
    }  # fmt: skip
    assert container["portMappings"] == [{"containerPort": 80, "hostPort": 80, "protocol": "tcp"}]
    assert container["healthCheck"] == {
        "command": ["CMD", "x"], "interval": 30, "timeout": 5, "retries": 3,
    }  # fmt: skip
    assert answer["tags"] == [{"key": "team", "value": "blue"}]
    assert "tags" not in definition
    for operation, shown in (
        ("RegisterTaskDefinition", answer),
        ("DescribeTaskDefinition", store.describe("app")),
        ("DeregisterTaskDefinition", store.deregister("app:1")),
    ):
        assert members_of(parsed(operation, shown)) == members_of(shown)


def test_everything_that_fargate_takes_is_kept(store: DefinitionStore) -> None:
    """FULL as far as this version supports it."""
    kept = json.loads(json.dumps(FULL))
    for problem in decode(FULL).refused:
        node: Any = kept
        *parents, last = problem.path.replace("[", ".[").split(".")
        for part in parents:
            node = node[int(part[1:-1])] if part.startswith("[") else node[part]
        node.pop(last, None)
    kept["volumes"] = kept["volumes"][:1]
    answer = store.register(kept)
    assert members_of(parsed("RegisterTaskDefinition", answer)) == members_of(answer)
    again = load_definition({**answer["taskDefinition"], "tags": answer["tags"]})
    assert again == load_definition({**kept, "revision": 1})


def test_revisions_count_up_and_none_is_used_twice(store: DefinitionStore) -> None:
    revisions = [store.register(document())["taskDefinition"]["revision"] for _ in range(3)]
    assert revisions == [1, 2, 3]
    store.deregister("app:3")
    asked = document(revision=99)
    assert store.register(asked)["taskDefinition"]["revision"] == 4
    assert store.describe("app")["taskDefinition"]["revision"] == 4
    assert store.register(document(family="other"))["taskDefinition"]["revision"] == 1


def test_inactive_ones(store: DefinitionStore, settings: Settings) -> None:
    store.register(document())
    store.register(document())
    first = store.deregister(f"{ARN}:2")["taskDefinition"]
    assert (first["status"], first["revision"]) == ("INACTIVE", 2)
    assert store.deregister("app:2")["taskDefinition"] == first
    assert store.describe("app:2")["taskDefinition"] == first
    assert store.describe("app")["taskDefinition"]["revision"] == 1
    with pytest.raises(TaskDefinitionInactive, match=r"^TaskDefinition is inactive"):
        find_source(settings, "app:2")
    store.deregister("app:1")
    with pytest.raises(TaskDefinitionNotFound, match=r"^Unable to describe task definition"):
        store.describe("app")


def test_lists(store: DefinitionStore) -> None:
    assert store.list_arns() == []
    for family in ("app", "app", "app2"):
        store.register(document(family=family))
    store.deregister("app:1")
    assert store.list_arns() == [f"{ARN}:2", f"{ARN}2:1"]
    assert store.list_arns(descending=True) == [f"{ARN}2:1", f"{ARN}:2"]
    assert store.list_arns("app") == [f"{ARN}:2"]  # familyPrefix is a whole family (contract 8.3)
    assert store.list_arns(status="INACTIVE") == [f"{ARN}:1"]


@pytest.mark.parametrize("text", ["app:9", "none", "app:", ":1", "a b", "../x", "app:1:2", "a/b:1"])
def test_what_is_not_there(store: DefinitionStore, text: str) -> None:
    store.register(document())
    for ask in (store.describe, store.deregister):
        with pytest.raises(TaskDefinitionNotFound):
            ask(text)


def test_a_definition_that_is_not_for_fargate(store: DefinitionStore, settings: Settings) -> None:
    asked = {
        "family": "ec2", "requiresCompatibilities": ["EC2"],
        "containerDefinitions": [{"name": "c", "image": "i", "memory": 64, "privileged": True}],
    }  # fmt: skip
    shown = store.register(asked)["taskDefinition"]
    assert shown["compatibilities"] == ["EC2", "MANAGED_INSTANCES"]
    assert "cpu" not in shown
    with pytest.raises(InvalidTaskDefinition) as caught:
        load_definition(find_source(settings, "ec2"))
    assert caught.value.client_exception()["Error"]["Message"] == (
        "Task definition does not support launch_type FARGATE."
    )
    with pytest.raises(InvalidTaskDefinition):
        store.register({**asked, "requiresCompatibilities": ["EC2", "FARGATE"]})
    assert store.list_arns("ec2") == [shown["taskDefinitionArn"]]


def _register_some(data_root: str, run_root: str, count: int, results: Any) -> None:
    store = DefinitionStore(Settings(data_root=data_root, run_root=run_root))
    results.put([store.register(document())["taskDefinition"]["revision"] for _ in range(count)])


def test_processes_at_once_give_out_each_number_once(settings: Settings) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (settings.data_root, settings.run_root, 25, results)
    processes = [context.Process(target=_register_some, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    given = [revision for _ in processes for revision in results.get(timeout=60)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(given) == list(range(1, 101))
    assert len(DefinitionStore(settings).list_arns()) == 100


def test_files_are_ours_alone_and_versioned(store: DefinitionStore, settings: Settings) -> None:
    store.register(document())
    path = settings.definitions / "app" / "1.json"
    for item in (settings.definitions, path.parent):
        assert stat.S_IMODE(item.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(StateCorrupt, match="has version 2, this program reads 1"):
        store.describe("app")
    path.write_text("{")
    with pytest.raises(StateCorrupt, match="no registered task definition"):
        store.describe("app")


def test_an_unfinished_registration_is_no_revision(
    store: DefinitionStore, settings: Settings
) -> None:
    store.register(document())
    (settings.definitions / "app" / ".2.json.123.abcd").write_text("half")
    assert store.register(document())["taskDefinition"]["revision"] == 2


def test_identifiers() -> None:
    assert parse_identifier("app") == ("app", None)
    assert parse_identifier("app:3") == ("app", 3)
    assert parse_identifier(f"{ARN}:12") == ("app", 12)
    for text in (
        "",
        "a b",
        "a:b",
        "a:-1",
        "x/app:1",
        "arn:aws:ecs:us-east-1:1:cluster/app",
        "a:1\n",
    ):
        assert parse_identifier(text) is None


def test_a_path_wins(
    store: DefinitionStore, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register(document())
    monkeypatch.chdir(tmp_path)
    found = find_source(settings, "app")
    assert isinstance(found, dict)
    assert found["revision"] == 1
    (tmp_path / "app").write_text("{}")
    assert find_source(settings, "app") == "app"
    for text in ("x/app", "app.json", os.fspath(tmp_path / "app"), '{"family": "a"}'):
        assert find_source(settings, text) == text
    with pytest.raises(TaskDefinitionNotFound, match="no file 'nope', and no task definition"):
        find_source(settings, "nope")
