"""Secrets as files that follow rotation, where the host's configuration says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, run_task
from fargatelite.settings import BeyondFargate
from tests.fixtures.aws import Aws
from tests.root.runtime.test_container_features import (
    TIMEOUT_S,
    check,
    definition,
    lines_of,
    run,
    shell,
)

pytestmark = [pytest.mark.root, pytest.mark.registry]


def document(image: str, script: str, name: str = "PASSWORD") -> dict[str, Any]:
    secrets = [{"name": name, "valueFrom": "password"}]
    return definition(
        image, shell("app", script, secrets=secrets, user="app", stopTimeout=2),
        executionRoleArn="arn:aws:iam::123456789012:role/execution",
    )  # fmt: skip


def test_a_rotated_secret_arrives_in_the_file(settings: Settings, busybox: str, aws: Aws) -> None:
    ssm = aws.client("ssm")
    ssm.put_parameter(Name="password", Value="first", Type="SecureString")
    following = msgspec.structs.replace(
        settings, beyond_fargate=BeyondFargate(secret_files_refresh_s=1)
    )
    script = (
        "cat /run/secrets/PASSWORD; echo; stat -c '%U %a' /run/secrets/PASSWORD;"
        " touch /run/secrets/x 2>&1 | grep -o Read-only; echo ready;"
        " while grep -q first /run/secrets/PASSWORD; do sleep 0.1; done;"
        " cat /run/secrets/PASSWORD; echo; echo $PASSWORD"
    )
    with run_task(document(busybox, script), settings=following) as task:
        for line in task.logs("app", follow=True):
            if line.text == b"ready":
                break
        files = Path(following.run_root) / "secrets" / task.id / "app"
        assert [path.name for path in files.iterdir()] == ["PASSWORD"]
        ssm.put_parameter(Name="password", Value="second", Type="SecureString", Overwrite=True)
        task.wait(TIMEOUT_S)
        assert lines_of(task, "app") == [
            "first", "root 444", "Read-only", "ready", "second", "first",
        ]  # fmt: skip
    assert not (Path(following.run_root) / "secrets").exists()


def test_a_service_that_is_down_takes_no_secret_away(
    settings: Settings, busybox: str, aws: Aws, caplog: pytest.LogCaptureFixture
) -> None:
    ssm = aws.client("ssm")
    ssm.put_parameter(Name="password", Value="first", Type="SecureString")
    following = msgspec.structs.replace(
        settings, beyond_fargate=BeyondFargate(secret_files_refresh_s=1)
    )
    with run_task(document(busybox, "sleep 300"), settings=following) as task:
        task.until("RUNNING", TIMEOUT_S)
        file = Path(following.run_root) / "secrets" / task.id / "app" / "PASSWORD"
        ssm.delete_parameter(Name="password")
        condition = task._supervised.changed
        with condition:
            condition.wait_for(lambda: "secret files stay as they are" in caplog.text, 1.0)
            for _ in range(50):
                if "secret files stay as they are" in caplog.text:
                    break
                condition.wait(0.2)
        assert "secret files stay as they are" in caplog.text
        assert "first" not in caplog.text
        assert file.read_text() == "first"


def test_it_is_off_by_default(settings: Settings, busybox: str, aws: Aws) -> None:
    aws.client("ssm").put_parameter(Name="password", Value="first", Type="SecureString")
    task = run(settings, document(busybox, "ls /run/secrets 2>/dev/null; echo $PASSWORD"))
    check(task)
    assert lines_of(task, "app") == ["first"]
    assert not (Path(settings.run_root) / "secrets").exists()


def test_a_name_that_is_no_file_name(settings: Settings, busybox: str, aws: Aws) -> None:
    aws.client("ssm").put_parameter(Name="password", Value="first", Type="SecureString")
    following = msgspec.structs.replace(
        settings, beyond_fargate=BeyondFargate(secret_files_refresh_s=60)
    )
    task = run(following, document(busybox, "true", name="../PASSWORD"))
    assert task.stop_code == "TaskFailedToStart"
    assert "cannot be a file of that name" in (task.containers["app"].reason or "")
