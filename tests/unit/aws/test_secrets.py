"""Secrets, files and roles from a moto server: what comes back, what is asked, what is said."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fargatelite.aws import session as session_module
from fargatelite.aws.environment_files import fetch_environment_files
from fargatelite.aws.secrets import fetch_secrets, resolve_secrets
from fargatelite.aws.session import Session, execution_session, role_arn_of
from fargatelite.errors import AwsFailed
from fargatelite.images.credentials import Credentials
from fargatelite.names import new_task_id
from fargatelite.runtime.inputs import TaskInputs
from fargatelite.runtime.trace import Timeline
from fargatelite.settings import CredentialSettings, Settings
from fargatelite.taskdef.fields import LogConfiguration, Secret, TaskDefinition
from fargatelite.taskdef.load import load_definition
from fargatelite.taskdef.references import parse_value_from
from tests.fixtures.aws import ACCOUNT, Aws

SETTINGS = Settings(account=ACCOUNT)
UNABLE = "unable to pull secrets or registry auth: execution resource retrieval failed: "
ROLE = f"arn:aws:iam::{ACCOUNT}:role/execution"


def fetch(*names: str, settings: Settings = SETTINGS) -> list[str]:
    found = fetch_secrets(settings, map(parse_value_from, names), Session(settings))
    return [found[parse_value_from(name)] for name in names]


def definition(**container: Any) -> TaskDefinition:
    return load_definition(
        {
            "family": "app", "networkMode": "awsvpc", "cpu": "256", "memory": "512",
            "executionRoleArn": ROLE, "taskRoleArn": f"arn:aws:iam::{ACCOUNT}:role/app",
            "containerDefinitions": [{"name": "app", "image": "i", **container}],
        }
    )  # fmt: skip


class Recorder:
    """Counts calls by their operation, in front of moto."""

    def __init__(self, endpoint: str) -> None:
        self.calls: list[str] = []
        self.keys: dict[str, str] = {}
        """The access key that each operation was last signed with."""
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import urllib.request

                body = self.rfile.read(int(self.headers["Content-Length"]))
                operation = self.headers.get("X-Amz-Target", "sts").rpartition(".")[2]
                recorder.calls.append(operation)
                signed = self.headers["Authorization"].partition("Credential=")[2]
                recorder.keys[operation] = signed.partition("/")[0]
                asked = urllib.request.Request(endpoint, body, dict(self.headers))
                with urllib.request.urlopen(asked) as answer:
                    data = answer.read()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def recorder(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    running = Recorder(aws.endpoint_url)
    thread = threading.Thread(target=running.server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
    try:
        yield running
    finally:
        running.server.shutdown()
        thread.join()
        running.server.server_close()


def test_parameters_by_name_and_arn(aws: Aws) -> None:
    ssm = aws.client("ssm")
    ssm.put_parameter(Name="plain", Value="1", Type="String")
    ssm.put_parameter(Name="/app/db", Value="hidden", Type="SecureString")
    ssm.put_parameter(Name="/app/db", Value="newer", Type="SecureString", Overwrite=True)
    other = aws.client("ssm", "eu-west-1")
    other.put_parameter(Name="/app/db", Value="elsewhere", Type="String")
    assert fetch(
        "plain", "/app/db", "/app/db:1",
        f"arn:aws:ssm:us-east-1:{ACCOUNT}:parameter/app/db",
        f"arn:aws:ssm:eu-west-1:{ACCOUNT}:parameter/app/db",
    ) == ["1", "newer", "hidden", "newer", "elsewhere"]  # fmt: skip


def test_parameters_by_ten_and_secrets_once(aws: Aws, recorder: Recorder) -> None:
    for number in range(23):
        aws.client("ssm").put_parameter(Name=f"/p/{number}", Value=str(number), Type="String")
    arn = aws.client("secretsmanager").create_secret(Name="s", SecretString='{"a": "1", "b": "2"}')[
        "ARN"
    ]
    names = [f"/p/{number}" for number in range(23)]
    assert fetch(*names, *names, f"{arn}:a::", f"{arn}:b::", arn) == [
        *map(str, range(23)), *map(str, range(23)), "1", "2", '{"a": "1", "b": "2"}',
    ]  # fmt: skip
    assert sorted(recorder.calls) == ["GetParameters"] * 3 + ["GetSecretValue"]


def test_versions_and_keys_of_a_secret(aws: Aws) -> None:
    manager = aws.client("secretsmanager")
    made = manager.create_secret(Name="prod/db", SecretString='{"user": "old"}')
    manager.put_secret_value(
        SecretId="prod/db",
        SecretString='{"user": "n\\u00e9w", "port": 5432, "on": true, "list": [1,2], "": "empty"}',
    )
    arn, version = made["ARN"], made["VersionId"]
    assert fetch(
        f"{arn}:user::", f"{arn}:user:AWSPREVIOUS:", f"{arn}:user::{version}", f"{arn}:port::",
        f"{arn}:on::", f"{arn}:list::", f"{arn}::AWSPREVIOUS:",
    ) == ["néw", "old", "old", "5432", "true", "[1,2]", '{"user": "old"}']  # fmt: skip


def test_failures_in_fargates_words(aws: Aws) -> None:
    manager = aws.client("secretsmanager")
    text = manager.create_secret(Name="text", SecretString="swordfish")["ARN"]
    binary = manager.create_secret(Name="binary", SecretBinary=b"\0\1")["ARN"]
    json = manager.create_secret(Name="json", SecretString='{"a": "swordfish"}')["ARN"]
    missing = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:nope-Ab12Cd"
    retried = "service call has been retried 1 time(s): "
    for names, words in {
        ("/none", "/more"): f"unable to retrieve secrets from ssm: {retried}invalid ssm parameters:"
        " /none,/more",
        (missing,): f"unable to retrieve secret from asm: {retried}failed to fetch secret {missing}"
        " from secrets manager: ResourceNotFoundException: Secrets Manager can't find the specified"
        " secret.",
        (f"{json}:b::",): f"unable to retrieve secret from asm: {retried}retrieved secret from "
        "Secrets Manager did not contain json key b",
        (f"{text}:b::",): f"unable to retrieve secret from asm: {retried}invalid character looking "
        f"for beginning of value: secret {text} is not the JSON object that json key b asks for",
        (binary,): f"unable to retrieve secret from asm: {retried}failed to fetch secret {binary} "
        "from secrets manager: it is binary; only text secrets can be injected",
    }.items():
        with pytest.raises(AwsFailed) as caught:
            fetch(*names)
        assert str(caught.value) == UNABLE + words
        chain = f"{caught.value.__cause__} {caught.value.__cause__!r}"
        assert "swordfish" not in chain


def test_access_denied_is_passed_on(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = b'{"__type": "AccessDeniedException", "Message": "User: u is not authorized"}'
            self.send_response(400)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    # The variant for one service goes before the general one.
    monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", f"http://127.0.0.1:{server.server_address[1]}")
    try:
        with pytest.raises(AwsFailed) as caught:
            fetch("/x")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert str(caught.value) == (
        f"{UNABLE}unable to retrieve secrets from ssm: service call has been retried 1 time(s): "
        "AccessDeniedException: User: u is not authorized"
    )


def test_a_service_that_is_not_there(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(AwsFailed) as caught:
        fetch("/x")
    assert "has been retried 3 time(s): EndpointConnectionError: " in str(caught.value)


def test_no_credentials(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AwsFailed, match="NoCredentialsError: Unable to locate credentials"):
        fetch("/x")


def test_a_profile_that_is_not_there(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(AwsFailed, match=r"profile .*nope.* could not be found"):
        fetch("/x")


def test_a_nul_is_refused(aws: Aws) -> None:
    arn = aws.client("secretsmanager").create_secret(Name="nul", SecretString='{"a": "x\\u0000"}')
    with pytest.raises(AwsFailed, match="holds a NUL byte"):
        fetch(f"{arn['ARN']}:a::")


def _with_secret_options(loaded: TaskDefinition, *options: Secret) -> TaskDefinition:
    logging = LogConfiguration(log_driver="splunk", secret_options=options)
    container = msgspec.structs.replace(loaded.containers[0], log_configuration=logging)
    return msgspec.structs.replace(loaded, containers=(container,))


@pytest.mark.field("containerDefinitions[].logConfiguration.secretOptions")
@pytest.mark.field("containerDefinitions[].logConfiguration.secretOptions[].name")
@pytest.mark.field("containerDefinitions[].logConfiguration.secretOptions[].valueFrom")
def test_all_that_a_definition_names(aws: Aws) -> None:
    aws.client("ssm").put_parameter(Name="/a", Value="of a", Type="String")
    aws.client("ssm").put_parameter(Name="/token", Value="of token", Type="String")
    aws.client("secretsmanager").create_secret(
        Name="login", SecretString='{"username": "u", "password": "p"}'
    )
    loaded = _with_secret_options(
        definition(
            secrets=[{"name": "A", "valueFrom": "/a"}],
            repositoryCredentials={"credentialsParameter": "login"},
        ),
        Secret(name="splunk-token", value_from="/token"),
    )
    assert resolve_secrets(SETTINGS, loaded) == {
        "/a": "of a",
        "/token": "of token",
        "login": '{"username": "u", "password": "p"}',
    }
    inputs = TaskInputs(SETTINGS, loaded, new_task_id(), Timeline(), threading.Event())
    inputs.begin()
    inputs.wait()
    container = loaded.containers[0]
    assert inputs.secret_options(container) == {"splunk-token": "of token"}
    assert inputs.of_container(container).secrets == {"A": "of a"}
    assert "of a" not in repr(inputs.of_container(container))
    login = inputs.registry_credentials(container)
    assert login is not None
    assert (login.username, login.password) == ("u", "p")


def test_no_log_has_a_secret(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    aws.client("ssm").put_parameter(Name="/a", Value="swordfish", Type="SecureString")
    botocore_logger = logging.getLogger("botocore")
    monkeypatch.setattr(botocore_logger, "level", logging.NOTSET)
    botocore_logger.manager._clear_cache()  # type: ignore[attr-defined]
    loaded = definition(secrets=[{"name": "A", "valueFrom": "/a"}])
    with caplog.at_level(logging.DEBUG):
        inputs = TaskInputs(SETTINGS, loaded, new_task_id(), Timeline(), threading.Event())
        inputs.begin()
        inputs.wait()
    assert inputs.of_container(loaded.containers[0]).secrets == {"A": "swordfish"}
    assert caplog.text, "the server's"
    assert "swordfish" not in caplog.text


def test_a_task_role_that_cannot_be_had_ends_the_wait(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = msgspec.structs.replace(SETTINGS, credentials=CredentialSettings(source="assume"))

    def start() -> TaskInputs:
        inputs = TaskInputs(settings, definition(), new_task_id(), Timeline(), threading.Event())
        inputs.begin()
        return inputs

    inputs = start()
    inputs.wait()
    assert inputs.task_role is not None
    assert inputs.task_role.credentials() is not None
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    with pytest.raises(AwsFailed, match=r"^ECS was unable to assume the role"):
        start().wait()


@pytest.mark.parametrize("text", ["", "u:p", "[]", '{"username": "u"}', '{"username":1}'])
def test_a_login_that_is_none(aws: Aws, text: str) -> None:
    aws.client("secretsmanager").create_secret(Name="login", SecretString=f" {text}")
    loaded = definition(repositoryCredentials={"credentialsParameter": "login"})
    inputs = TaskInputs(SETTINGS, loaded, new_task_id(), Timeline(), threading.Event())
    inputs.begin()
    with pytest.raises(AwsFailed, match="secret login is not"):
        inputs.registry_credentials(loaded.containers[0])


def _login_of(settings: Settings, image: str) -> Credentials | None:
    loaded = definition(image=image)
    inputs = TaskInputs(settings, loaded, new_task_id(), Timeline(), threading.Event())
    inputs.begin()
    inputs.wait()
    return inputs.registry_credentials(loaded.containers[0])


def test_an_ecr_login_as_the_execution_role(aws: Aws, recorder: Recorder, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(
        SETTINGS, assume_roles=True, data_root=str(tmp_path / "data")
    )
    login = _login_of(settings, f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/app:1")
    assert login is not None
    assert login.username == "AWS"
    assert login.password not in repr(login)
    assert recorder.calls == ["sts", "GetAuthorizationToken"]
    assert recorder.keys["sts"] == os.environ["AWS_ACCESS_KEY_ID"]
    assert recorder.keys["GetAuthorizationToken"] != os.environ["AWS_ACCESS_KEY_ID"]
    # Another registry's image is nothing to the role, and without `assume_roles` the host logs in.
    assert _login_of(settings, "registry.example.com/app:1") is None
    assert _login_of(SETTINGS, f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/app:1") is None
    assert recorder.calls == ["sts", "GetAuthorizationToken"]


def test_a_stop_ends_the_wait_for_a_service_that_does_not_answer(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(session_module, "READ_TIMEOUT_S", 0.5)
        cancelled = threading.Event()
        loaded = definition(secrets=[{"name": "A", "valueFrom": "/a"}])
        inputs = TaskInputs(SETTINGS, loaded, new_task_id(), Timeline(), cancelled)
        inputs.begin()
        cancelled.set()
        with pytest.raises(AwsFailed, match="was cancelled"):
            inputs.wait()


def test_environment_files_of_s3(aws: Aws) -> None:
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="config")
    s3.put_object(Bucket="config", Key="a/one.env", Body=b"A=1\nB=1\n")
    s3.put_object(Bucket="config", Key="big.env", Body=b"#" * ((1 << 20) + 1))
    one = "arn:aws:s3:::config/a/one.env"
    assert fetch_environment_files(Session(SETTINGS), [one, one]) == {one: {"A": "1", "B": "1"}}
    for arn, words in {
        "arn:aws:s3:::config/none.env": "service call has been retried 1 time(s): NoSuchKey: ",
        "arn:aws:s3:::nowhere/a.env": "service call has been retried 1 time(s): NoSuchBucket: ",
    }.items():
        with pytest.raises(AwsFailed) as caught:
            fetch_environment_files(Session(SETTINGS), [one, arn])
        assert str(caught.value).startswith(f"failed to download env files: {arn}: {words}")
    with pytest.raises(AwsFailed, match=r"big\.env has over 1048576 bytes"):
        fetch_environment_files(Session(SETTINGS), ["arn:aws:s3:::config/big.env"])


@pytest.mark.field("executionRoleArn")
def test_the_execution_role_is_assumed_only_where_the_host_says_so(aws: Aws) -> None:
    def account_arn(settings: Settings) -> str:
        session = execution_session(settings, definition(), "task-1")
        arn: str = session.client("sts").get_caller_identity()["Arn"]
        return arn

    assumed = msgspec.structs.replace(SETTINGS, assume_roles=True)
    assert account_arn(assumed) == f"arn:aws:sts::{ACCOUNT}:assumed-role/execution/task-1"
    assert "assumed-role" not in account_arn(SETTINGS)


def test_roles_by_name() -> None:
    for region, partition in {
        "us-east-1": "aws", "cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov",
        "ap-southeast-2": "aws",
    }.items():  # fmt: skip
        settings = msgspec.structs.replace(SETTINGS, region=region)
        assert role_arn_of(settings, "r") == f"arn:{partition}:iam::{ACCOUNT}:role/r"
    assert role_arn_of(SETTINGS, ROLE) == ROLE


def test_a_role_that_cannot_be_assumed(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    settings = msgspec.structs.replace(SETTINGS, assume_roles=True)
    session = execution_session(settings, definition(), "task-1")
    with pytest.raises(AwsFailed) as caught:
        fetch_secrets(settings, [parse_value_from("/a")], session)
    assert str(caught.value).startswith(f"ECS was unable to assume the role '{ROLE}' that was")
