"""What a real container gets of secrets, environment files and logins, and who else can see it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.runtime.events import Event, PullEvent
from fargatelite.settings import SecretSettings
from tests.fixtures.aws import ACCOUNT, Aws
from tests.fixtures.cli import CommandLine
from tests.fixtures.images import RunningRegistry, build_oci_layout, busybox_files, tar_layer
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry]

TIMEOUT_S = patient(60)
UNABLE = "ResourceInitializationError: unable to pull secrets or registry auth: "
PASSWORD = "swordfish-2718281828"
PARAMETER = "marlin-1618033988"


def definition(*containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "family": "inputs",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "executionRoleArn": f"arn:aws:iam::{ACCOUNT}:role/execution",
        "containerDefinitions": list(containers),
        **more,
    }


def shell(image: str, script: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "app", "image": image, "entryPoint": ["/bin/sh", "-c"], "command": [script],
        "stopTimeout": 2, **more,
    }  # fmt: skip


def text_of(task: Task) -> str:
    lines = (line.text + (b"" if line.is_partial else b"\n") for line in task.logs("app"))
    return b"".join(lines).decode()


def finished(task: Task) -> Task:
    task.wait(TIMEOUT_S)
    return task


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _files(*roots: str) -> Iterator[Path]:
    for root in roots:
        for directory, _, names in os.walk(root):
            for name in names:
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink():
                    yield path


def _data_of(path: Path) -> bytes:
    """What is written in a file; a task's file system is a sparse one of 20 GiB."""
    data, at = b"", 0
    with open(path, "rb") as file:
        while True:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return data
                raise
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            data += os.pread(file.fileno(), at - start, start)


def _seen_in_files(settings: Settings, *secrets: str) -> list[str]:
    found = []
    for path in _files(settings.data_root, settings.run_root):
        data = _data_of(path)
        found += [f"{path}: {secret}" for secret in secrets if secret.encode() in data]
    return found


def _seen_in_command_lines(*secrets: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            data = path.read_bytes()
        except OSError:
            continue  # it ended while we looked
        found += [f"{path}: {data!r}" for secret in secrets if secret.encode() in data]
    return found


@pytest.mark.field("containerDefinitions[].secrets")
@pytest.mark.field("containerDefinitions[].secrets[].name")
@pytest.mark.field("containerDefinitions[].secrets[].valueFrom")
def test_a_container_has_its_secrets_and_nobody_else(
    settings: Settings, busybox: str, aws: Aws
) -> None:
    aws.client("ssm").put_parameter(Name="/app/key", Value=PARAMETER, Type="SecureString")
    arn = aws.client("secretsmanager").create_secret(
        Name="db", SecretString=json.dumps({"password": PASSWORD, "port": 5432})
    )["ARN"]
    script = (
        "for v in \"$PASSWORD\" \"$KEY\" \"$PORT\"; do printf %s \"$v\" | busybox sha256sum; done;"
        " sleep 60"
    )  # fmt: skip
    events: list[Event] = []
    task = run_task(
        definition(
            shell(
                busybox,
                script,
                secrets=[
                    {"name": "PASSWORD", "valueFrom": f"{arn}:password::"},
                    {"name": "PORT", "valueFrom": f"{arn}:port::"},
                    {"name": "KEY", "valueFrom": "/app/key"},
                ],
            )
        ),
        settings=settings,
        trace=True,
        on_event=events.append,
    )
    with task:
        lines = []
        for line in task.logs("app", follow=True):
            lines.append(line.text.decode().split()[0])
            if len(lines) == 3:
                break
        assert lines == [sha256(PASSWORD), sha256(PARAMETER), sha256("5432")]
        # It is alive: state, plans, traces and the shim's files are there.
        assert list(_files(settings.run_root))
        assert _seen_in_files(settings, PASSWORD, PARAMETER) == []
        assert _seen_in_command_lines(PASSWORD, PARAMETER) == []
        # What is there is found: the log has the digests, a command line its program.
        assert _seen_in_files(settings, sha256(PASSWORD))
        assert _seen_in_command_lines("docker-registry")
        shown = json.dumps(task.describe()) + repr(task.op_traces) + repr(task.phases)
        assert "PASSWORD" in repr(task.op_traces), "names are shown"
    assert _seen_in_files(settings, PASSWORD, PARAMETER) == []
    for secret in (PASSWORD, PARAMETER):
        assert secret not in shown + repr(events) + repr(task.state)
    assert "secrets" in [phase.name for phase in task.phases]


def test_a_missing_parameter_stops_the_task(settings: Settings, busybox: str, aws: Aws) -> None:
    secrets = [{"name": "A", "valueFrom": "/nope"}, {"name": "B", "valueFrom": "/more"}]
    task = finished(
        run_task(definition(shell(busybox, "echo ran", secrets=secrets)), settings=settings)
    )
    assert task.stop_code == "TaskFailedToStart"
    assert task.stopped_reason == (
        f"{UNABLE}execution resource retrieval failed: unable to retrieve secrets from ssm: "
        "service call has been retried 1 time(s): invalid ssm parameters: /nope,/more"
    )
    assert task.containers["app"].exit_code is None
    assert task.containers["app"].reason is None
    assert text_of(task) == ""


def test_a_failure_of_secrets_is_the_reason_whatever_becomes_of_the_pull(
    settings: Settings, registry: RunningRegistry, aws: Aws, tmp_path: Path
) -> None:
    """It breaks the pull off, and is told, not what it broke."""
    noise = {f"f{number}": os.urandom(2_000_000) for number in range(8)}
    image = registry.push(build_oci_layout(tmp_path / "l", [tar_layer(noise)]), "large")
    secrets = [{"name": "A", "valueFrom": "/nope"}]
    task = finished(run_task(definition(shell(image, "true", secrets=secrets)), settings=settings))
    assert task.stopped_reason is not None
    assert task.stopped_reason.endswith("invalid ssm parameters: /nope")


@pytest.mark.field("containerDefinitions[].environmentFiles")
@pytest.mark.field("containerDefinitions[].environmentFiles[].type")
@pytest.mark.field("containerDefinitions[].environmentFiles[].value")
def test_precedence_of_environment_files(settings: Settings, busybox: str, aws: Aws) -> None:
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="config")
    files = {
        "one.env": "# one\nA=one\nB=one\nFROM_IMAGE=one\nAWS_EXECUTION_ENV=one\nQ=\"as is\"\n",
        "two.env": "A=two\nC=two\nD=two\nAWS_REGION=eu-west-3\n",
        "other.env": "A=other\n",
    }  # fmt: skip
    for name, text in files.items():
        s3.put_object(Bucket="config", Key=name, Body=text.encode())
    document = definition(
        shell(
            busybox,
            "env",
            environmentFiles=[
                {"type": "s3", "value": "arn:aws:s3:::config/one.env"},
                {"type": "s3", "value": "arn:aws:s3:::config/two.env"},
            ],
            environment=[{"name": "B", "value": "definition"}],
        )
    )
    task = finished(run_task(document, settings=settings))
    variables = dict(line.split("=", 1) for line in text_of(task).splitlines())
    assert {name: variables.get(name) for name in ("A", "B", "C", "D", "Q", "FROM_IMAGE")} == {
        "A": "one", "B": "definition", "C": "two", "D": "two", "Q": '"as is"', "FROM_IMAGE": "one",
    }  # fmt: skip
    assert variables["AWS_EXECUTION_ENV"] == "one"
    assert variables["AWS_REGION"] == "eu-west-3"
    assert "AWS_DEFAULT_REGION" not in variables

    override = {
        "name": "app",
        "environment": [{"name": "D", "value": "override"}],
        "environmentFiles": [{"type": "s3", "value": "arn:aws:s3:::config/other.env"}],
    }
    overrides = {"containerOverrides": [override]}
    task = finished(run_task(document, settings=settings, overrides=overrides))
    variables = dict(line.split("=", 1) for line in text_of(task).splitlines())
    assert {name: variables.get(name) for name in ("A", "B", "C", "D")} == {
        "A": "other", "B": "definition", "C": None, "D": "override",
    }  # fmt: skip


def test_a_missing_environment_file_stops_the_task(
    settings: Settings, busybox: str, aws: Aws
) -> None:
    aws.client("s3").create_bucket(Bucket="config")
    files = [{"type": "s3", "value": "arn:aws:s3:::config/none.env"}]
    task = finished(
        run_task(definition(shell(busybox, "true", environmentFiles=files)), settings=settings)
    )
    assert task.stop_code == "TaskFailedToStart"
    assert task.stopped_reason == (
        "ResourceInitializationError: failed to download env files: arn:aws:s3:::config/none.env: "
        "service call has been retried 1 time(s): NoSuchKey: The specified key does not exist."
    )


@pytest.fixture(scope="module")
def private_image(
    private_registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory
) -> str:
    layout = build_oci_layout(
        tmp_path_factory.mktemp("private") / "layout",
        [tar_layer(busybox_files())],
        {"Cmd": ["/bin/echo", "private"]},
    )
    return private_registry.push(layout, "private")


@pytest.mark.field("containerDefinitions[].repositoryCredentials")
@pytest.mark.field("containerDefinitions[].repositoryCredentials.credentialsParameter")
def test_a_private_registry(
    settings: Settings, private_registry: RunningRegistry, private_image: str, aws: Aws
) -> None:
    assert private_registry.login is not None
    username, password = private_registry.login.split(":")
    manager = aws.client("secretsmanager")
    arn = manager.create_secret(
        Name="login", SecretString=json.dumps({"username": username, "password": password})
    )["ARN"]
    wrong = manager.create_secret(
        Name="wrong", SecretString=json.dumps({"username": username, "password": "wrong"})
    )["ARN"]
    seen: list[str] = []

    def look(event: Event) -> None:
        if isinstance(event, PullEvent):
            seen.extend(_seen_in_command_lines(password))

    app = {"name": "app", "image": private_image}
    for parameter in (arn, "login"):
        credentials = {"repositoryCredentials": {"credentialsParameter": parameter}}
        task = finished(
            run_task(definition({**app, **credentials}), settings=settings, on_event=look)
        )
        assert text_of(task) == "private\n", task.stopped_reason
    assert seen == []
    assert _seen_in_files(settings, password) == []

    # The image is in the store, but who has no login may not use it.
    task = finished(run_task(definition(app), settings=settings))
    assert task.stopped_reason is not None
    assert task.stopped_reason.startswith("CannotPullContainerError: ")
    assert "no basic auth credentials" in task.stopped_reason
    credentials = {"repositoryCredentials": {"credentialsParameter": wrong}}
    task = finished(run_task(definition({**app, **credentials}), settings=settings))
    assert task.stopped_reason is not None
    assert "unexpected status 401 for manifest: access denied" in task.stopped_reason
    assert task.stop_code == "TaskFailedToStart"


def test_no_token_for_ecr(settings: Settings, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    image = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/app:1"
    for assume_roles in (False, True):
        chosen = msgspec.structs.replace(settings, assume_roles=assume_roles)
        task = finished(run_task(definition({"name": "app", "image": image}), settings=chosen))
        assert task.stop_code == "TaskFailedToStart"
        assert task.stopped_reason is not None
        assert task.stopped_reason.startswith("ResourceInitializationError: "), task.stopped_reason
        assert "Unable to locate credentials" in task.stopped_reason


def test_secrets_of_the_host(
    settings: Settings, busybox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # nobody is to be asked
    (tmp_path / "secrets/ssm").mkdir(parents=True)
    (tmp_path / "secrets/ssm/token").write_text("of a file\n")
    monkeypatch.setenv("TEST_SECRET_KEY", "of a variable")
    chosen = msgspec.structs.replace(
        settings,
        secrets=SecretSettings(
            local_directory=str(tmp_path / "secrets"), local_environment_prefix="TEST_SECRET_"
        ),
    )
    secrets = [{"name": "TOKEN", "valueFrom": "/token"}, {"name": "KEY", "valueFrom": "key"}]
    task = finished(
        run_task(
            definition(shell(busybox, 'echo "$TOKEN, $KEY"', secrets=secrets)), settings=chosen
        )
    )
    assert text_of(task) == "of a file, of a variable\n", task.stopped_reason
    secrets = [{"name": "TOKEN", "valueFrom": "/../../outside"}]
    task = finished(run_task(definition(shell(busybox, "true", secrets=secrets)), settings=chosen))
    assert task.stopped_reason is not None
    assert task.stopped_reason.startswith(
        f"{UNABLE}execution resource retrieval failed: no local secret at $TEST_SECRET_"
    )


def test_a_dry_run_reads_no_secret_and_names_it(
    fargatelite: CommandLine, settings: Settings, busybox: str, aws: Aws, tmp_path: Path
) -> None:
    path = tmp_path / "task.json"
    secrets = [{"name": "TOKEN", "valueFrom": "/nope"}]
    files = [{"type": "s3", "value": "arn:aws:s3:::config/none.env"}]
    document = definition(shell(busybox, "true", secrets=secrets, environmentFiles=files))
    path.write_text(json.dumps(document))
    done = fargatelite("run", "--dry-run", path)
    assert done.returncode == 0, done.stderr
    assert "# TOKEN=<secret> of /nope\n" in done.stdout
    assert "# variables of arn:aws:s3:::config/none.env, read when the task starts" in done.stdout
    assert "'TOKEN'" in done.stdout


def test_the_command_line_shows_no_secret(
    fargatelite: CommandLine, settings: Settings, busybox: str, aws: Aws, tmp_path: Path
) -> None:
    aws.client("ssm").put_parameter(Name="/key", Value=PARAMETER, Type="SecureString")
    path = tmp_path / "task.json"
    secrets = [{"name": "KEY", "valueFrom": "/key"}]
    script = 'printf %s "$KEY" | busybox sha256sum; sleep 60'
    path.write_text(json.dumps(definition(shell(busybox, script, secrets=secrets))))
    process = fargatelite.start("run", "--trace", path, environment=dict(os.environ))
    assert process.stdout is not None
    assert sha256(PARAMETER) in process.stdout.readline()
    assert _seen_in_command_lines(PARAMETER) == []
    process.terminate()
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert PARAMETER not in out + err
    assert _seen_in_files(settings, PARAMETER) == []
