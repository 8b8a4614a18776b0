"""Credentials of a task's role: whose, fresh when, and never more than a bound to wait."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from fargatelite.aws import task_role
from fargatelite.aws.credentials import Credentials
from fargatelite.aws.task_role import TaskRole, open_task_role
from fargatelite.errors import AwsFailed
from fargatelite.settings import CredentialSettings, Settings
from fargatelite.taskdef.load import load_definition
from tests.fixtures.aws import ACCOUNT, Aws

ROLE = f"arn:aws:iam::{ACCOUNT}:role/app"
SETTINGS = Settings(account=ACCOUNT)
DEFINITION = load_definition(
    {
        "family": "app", "networkMode": "awsvpc", "cpu": "256", "memory": "512",
        "taskRoleArn": ROLE, "containerDefinitions": [{"name": "app", "image": "i"}],
    }
)  # fmt: skip
HOUR_NS = 3600 * 10**9


def _open(source: str, static_file: Path | None = None) -> TaskRole:
    credentials = CredentialSettings(
        source=source,  # type: ignore[arg-type]
        static_file=str(static_file) if static_file else None,
    )
    settings = msgspec.structs.replace(SETTINGS, credentials=credentials)
    role = open_task_role(settings, DEFINITION, "0123456789abcdef0123456789abcdef")
    assert role is not None
    return role


def _identity(aws: Aws, found: Credentials) -> str:
    import botocore.session

    client = botocore.session.Session().create_client(
        "sts", region_name="us-east-1", endpoint_url=aws.endpoint_url,
        aws_access_key_id=found.access_key_id, aws_secret_access_key=found.secret_access_key,
        aws_session_token=found.token,
    )  # fmt: skip
    arn: str = client.get_caller_identity()["Arn"]
    return arn


def test_nobodys_by_default() -> None:
    assert open_task_role(SETTINGS, DEFINITION) is None
    without = msgspec.structs.replace(DEFINITION, task_role_arn=None)
    settings = msgspec.structs.replace(SETTINGS, credentials=CredentialSettings(source="host"))
    assert open_task_role(settings, without) is None


@pytest.mark.field("taskRoleArn")
def test_assumed(aws: Aws) -> None:
    role = _open("assume")
    role.prepare()
    found = role.credentials()
    assert found is not None
    assert found.role_arn == ROLE
    assert 0.9 * HOUR_NS < found.expires_at_ns - time.time_ns() < 1.1 * HOUR_NS
    assert _identity(aws, found) == (
        f"arn:aws:sts::{ACCOUNT}:assumed-role/app/0123456789abcdef0123456789abcdef"
    )
    assert role.credentials() is found, "from memory"


def test_of_the_host(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    role = _open("host")
    role.prepare()
    found = role.credentials()
    assert found is not None
    assert found.access_key_id != os.environ["AWS_ACCESS_KEY_ID"], "never the long-lived keys"
    assert found.secret_access_key != os.environ["AWS_SECRET_ACCESS_KEY"]
    assert found.token
    assert found.role_arn == ROLE
    # Temporary ones of the host are handed on.
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token of the host")
    handed = _open("host")
    handed.prepare()
    again = handed.credentials()
    assert again is not None
    assert (again.access_key_id, again.token) == (
        os.environ["AWS_ACCESS_KEY_ID"],
        "token of the host",
    )


def test_the_host_has_none(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    role = _open("host")
    with pytest.raises(AwsFailed, match="the host has no AWS credentials"):
        role.prepare()
    with pytest.raises(AwsFailed, match="the host has no AWS credentials"):
        role.credentials()


def _write(path: Path, key: str, lifetime: timedelta = timedelta(hours=1), **more: str) -> None:
    document = {
        "AccessKeyId": key, "SecretAccessKey": "swordfish", "Token": "t",
        "Expiration": (datetime.now(UTC) + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ"), **more,
    }  # fmt: skip
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(document))
    temporary.rename(path)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    _write(path, "one")
    role = _open("static", path)
    found = role.credentials()
    assert found is not None
    assert (found.access_key_id, found.role_arn) == ("one", ROLE)
    assert "swordfish" not in repr(found)
    _write(path, "two", RoleArn="arn:aws:iam::1:role/other")
    found = role.credentials()
    assert found is not None
    assert (found.access_key_id, found.role_arn) == ("two", "arn:aws:iam::1:role/other")
    path.write_text("{")
    kept = role.credentials()
    assert kept is found, "what is valid outlives a broken file"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"AccessKeyId": "swordfish"', '{"AccessKeyId": ["swordfish"]}']
)
def test_a_file_that_is_no_answer(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(AwsFailed, match="is not the JSON of a credentials endpoint") as caught:
        _open("static", path).prepare()
    assert "swordfish" not in str(caught.value)
    with pytest.raises(AwsFailed, match="No such file"):
        _open("static", tmp_path / "none").prepare()


class _Origin:
    """Gives credentials of a lifetime, when it is let."""

    def __init__(self, lifetime_s: float) -> None:
        self.lifetime_ns = int(lifetime_s * 10**9)
        self.fetched = 0
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()

    def is_changed(self) -> bool:
        return False

    def fetch(self) -> Credentials:
        self.asked.set()
        assert self.gate.wait(20)
        self.fetched += 1
        return Credentials(
            role_arn=ROLE,
            access_key_id=f"key {self.fetched}",
            secret_access_key="s",
            token="t",
            expires_at_ns=time.time_ns() + self.lifetime_ns,
        )


def test_refreshed_before_they_expire_without_making_anybody_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_role, "RETRY_AFTER_S", 0)
    origin = _Origin(600)  # less than is left when a refresh is due
    role = TaskRole(origin, ROLE)
    role.prepare()
    origin.gate.clear()
    origin.asked.clear()
    first = role.credentials()
    assert first is not None
    assert first.access_key_id == "key 1", "valid ones while others are fetched"
    assert origin.asked.wait(20)
    assert role.credentials() is first
    origin.lifetime_ns = 2 * HOUR_NS
    origin.gate.set()
    with role._condition:
        assert role._condition.wait_for(lambda: not role._is_fetching, 20)
    second = role.credentials()
    assert second is not None
    assert second.access_key_id == "key 2"
    assert origin.fetched == 2


def test_none_yet_after_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_role, "WAIT_S", 0.05)
    origin = _Origin(7200)
    origin.gate.clear()
    role = TaskRole(origin, ROLE)
    assert role.credentials() is None
    origin.gate.set()
    with role._condition:
        assert role._condition.wait_for(lambda: not role._is_fetching, 20)
    assert role.credentials() is not None


def test_many_callers_one_fetch() -> None:
    origin = _Origin(7200)
    role = TaskRole(origin, ROLE)
    found: list[Credentials | None] = []
    threads = [threading.Thread(target=lambda: found.append(role.credentials())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert origin.fetched == 1
    assert {item.access_key_id for item in found if item is not None} == {"key 1"}
    assert len(found) == 16


def test_expired_ones_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_role, "WAIT_S", 0.05)
    origin = _Origin(-1)
    role = TaskRole(origin, ROLE)
    role.prepare()
    assert role.credentials() is None
