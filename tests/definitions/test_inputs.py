"""What containers get from AWS: secrets, files of variables, logins, roles."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from fargatelite.settings import CredentialSettings
from tests.fixtures.images import RunningRegistry
from tests.fixtures.published import Published

pytestmark = [pytest.mark.root, pytest.mark.registry]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.field(
    "containerDefinitions[].secrets[].name", "containerDefinitions[].secrets[].valueFrom"
)
def test_parameters(published: Published) -> None:
    ssm = published.aws.client("ssm")
    ssm.put_parameter(Name="/prod/notifier/smtp", Value="smtp p4ss", Type="SecureString")
    ssm.put_parameter(Name="/prod/notifier/slack", Value="xoxb-1", Type="String")
    lines = published.run("secrets-ssm").lines("notifier")
    assert [line.split()[0] for line in lines] == [sha256("smtp p4ss"), sha256("xoxb-1")]


@pytest.mark.field("containerDefinitions[].secrets[].valueFrom")
def test_keys_and_versions_of_a_secret(published: Published) -> None:
    manager = published.aws.client("secretsmanager")
    old, new = ({"host": "db.internal", "password": word} for word in ("first", "second"))
    arn = manager.create_secret(Name="prod/db", SecretString=json.dumps(old))["ARN"]
    manager.put_secret_value(SecretId=arn, SecretString=json.dumps(new))
    published.replacements["${DB_SECRET_ARN}"] = arn
    ran = published.run("secrets-manager-keys")
    lines = ran.lines("api")
    assert lines[0] == "db.internal", ran.why
    assert [line.split()[0] for line in lines[1:]] == [
        sha256("second"), sha256("first"), sha256(json.dumps(new)),
    ]  # fmt: skip


def test_a_key_that_the_secret_has_not(published: Published) -> None:
    arn = published.aws.client("secretsmanager").create_secret(
        Name="prod/db", SecretString='{"password": "hidden-7391"}'
    )["ARN"]
    published.replacements["${DB_SECRET_ARN}"] = arn
    ran = published.run("secret-is-missing")
    reason = ran.task.stopped_reason or ""
    assert reason.startswith("ResourceInitializationError: unable to pull secrets or registry auth")
    assert "pasword" in reason
    assert "hidden-7391" not in reason
    assert ran.output("api") == []


@pytest.mark.field(
    "containerDefinitions[].environmentFiles[].value",
    "containerDefinitions[].environmentFiles[].type",
)
def test_files_of_variables(published: Published) -> None:
    s3 = published.aws.client("s3")
    s3.create_bucket(Bucket="acme-config")
    for name, text in {
        "prod/base.env": "# base\nLOG_LEVEL=info\nTIMEOUT=30\n",
        "prod/flags.env": "FLAG_NEW_CART=on\nTIMEOUT=60\n",
    }.items():
        s3.put_object(Bucket="acme-config", Key=name, Body=text.encode())
    ran = published.run("environment-files")
    assert ran.lines("app") == ["warn on 30"], ran.why


@pytest.mark.field("containerDefinitions[].repositoryCredentials.credentialsParameter")
def test_a_private_registry(published: Published, private_registry: RunningRegistry) -> None:
    username, _, password = (private_registry.login or "").partition(":")
    arn = published.aws.client("secretsmanager").create_secret(
        Name="partner/login",
        SecretString=json.dumps({"username": username, "password": password}),
    )["ARN"]
    published.replacements["${LOGIN_SECRET_ARN}"] = arn
    ran = published.run("private-registry")
    assert ran.lines("sdk") == ["from a private registry"], ran.why


@pytest.mark.field(
    "containerDefinitions[].environment[].name", "containerDefinitions[].environment[].value"
)
def test_a_large_environment(published: Published) -> None:
    assert published.run("large-environment").lines("spring") == ["240", "110"]


@pytest.mark.field("taskRoleArn")
def test_a_task_role(published: Published, tmp_path: Path) -> None:
    static = tmp_path / "role.json"
    expires = datetime.fromtimestamp(time.time() + 3600, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    static.write_text(
        json.dumps(
            {
                "RoleArn": "arn:aws:iam::123456789012:role/s3-sync", "AccessKeyId": "ASIASYNC",
                "SecretAccessKey": "k", "Token": "t", "Expiration": expires,
            }
        )
    )  # fmt: skip
    settings = msgspec.structs.replace(
        published.settings,
        credentials=CredentialSettings(source="static", static_file=str(static)),
    )
    ran = published.run("task-role", settings=settings)
    decoder, text = json.JSONDecoder(), "".join(ran.lines("sync"))
    role, at = decoder.raw_decode(text)
    task, _ = decoder.raw_decode(text[at:])
    assert (role["AccessKeyId"], role["RoleArn"].rpartition("/")[2]) == ("ASIASYNC", "s3-sync")
    assert (task["TaskARN"], task["Family"]) == (ran.task.arn, "s3-sync")


@pytest.mark.field("containerDefinitions[].dockerLabels", "tags[].key", "tags[].value")
def test_labels_and_tags(published: Published) -> None:
    ran = published.run("labels-and-tags")
    labels = json.loads("".join(ran.lines("app")))["Labels"]
    assert labels["traefik.http.routers.app.rule"] == "Host(`app.example.com`)"
    assert labels["com.amazonaws.ecs.task-arn"] == ran.task.arn


@pytest.mark.parametrize(
    ("name", "container", "hint"),
    [
        ("secrets-ssm", "notifier", "or keep secrets on this host: [secrets] in its configuration"),
        ("environment-files", "app", "configure AWS on this host as for its command line"),
        ("cron-report", "report", 'keep logs on this host: log_drivers = "local"'),
    ],
)
def test_a_host_without_aws_says_what_to_do(
    published: Published, monkeypatch: pytest.MonkeyPatch, name: str, container: str, hint: str
) -> None:
    """What most people meet first: a definition that works on AWS, on a laptop that has no AWS."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    ran = published.run(name)
    assert ran.task.stop_code == "TaskFailedToStart"
    assert hint in (ran.task.stopped_reason or ""), ran.why
    assert ran.output(container) == []
