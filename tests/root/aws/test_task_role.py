"""The task role as the AWS SDK's own container credential provider finds it, inside a task."""

from __future__ import annotations

import json
import sysconfig
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, run_task
from fargatelite.settings import CredentialSettings, EfsFileSystem
from tests.fixtures.images import (
    RunningRegistry,
    build_oci_layout,
    busybox_files,
    directory,
    link,
    tar_layer,
)
from tests.root.runtime.test_container_features import TIMEOUT_S, definition, lines_of, shell

pytestmark = [pytest.mark.root, pytest.mark.registry]

ROLE = "arn:aws:iam::123456789012:role/app"
SCRIPT = """
import botocore.session
found = botocore.session.Session().get_credentials()
frozen = found.get_frozen_credentials()
print(found.method, frozen.access_key, frozen.secret_key, frozen.token)
"""


@pytest.fixture
def host_python(registry: RunningRegistry, tmp_path: Path) -> str:
    """An image in which this host's Python runs, from /usr mounted into it."""
    files = {name: value for name, value in busybox_files().items() if not name.startswith("bin/")}
    files |= {name: link(name, f"usr/{name}") for name in ("bin", "lib", "lib64")}
    files |= {"usr": directory("usr"), "site": directory("site")}
    return registry.push(build_oci_layout(tmp_path / "layout", [tar_layer(files)]), "host-python")


def _write_static(path: Path, key: str, expires_in_s: float) -> None:
    expires = datetime.fromtimestamp(time.time() + expires_in_s, UTC)
    path.write_text(
        json.dumps(
            {
                "RoleArn": ROLE, "AccessKeyId": key, "SecretAccessKey": f"secret-of-{key}",
                "Token": f"token-of-{key}", "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
    )  # fmt: skip


def _document(image: str) -> dict[str, Any]:
    mounts = [
        {"sourceVolume": name, "containerPath": path, "readOnly": True}
        for name, path in (("usr", "/usr"), ("site", "/site"))
    ]
    app = {
        "name": "app", "image": image, "command": ["/usr/bin/python3", "-c", SCRIPT],
        "environment": [{"name": "PYTHONPATH", "value": "/site"}], "mountPoints": mounts,
    }  # fmt: skip
    volumes = [
        {"name": "usr", "efsVolumeConfiguration": {"fileSystemId": "fs-0000000a"}},
        {"name": "site", "efsVolumeConfiguration": {"fileSystemId": "fs-0000000b"}},
    ]
    return definition(image, app, volumes=volumes, taskRoleArn=ROLE)


@pytest.mark.field("taskRoleArn")
def test_the_sdk_finds_the_task_role(settings: Settings, host_python: str, tmp_path: Path) -> None:
    static = tmp_path / "role.json"
    _write_static(static, "ASIATASKROLE", 3600)
    configured = msgspec.structs.replace(
        settings,
        credentials=CredentialSettings(source="static", static_file=str(static)),
        efs=(
            EfsFileSystem(file_system_id="fs-0000000a", directory="/usr"),
            EfsFileSystem(file_system_id="fs-0000000b", directory=sysconfig.get_path("purelib")),
        ),
    )
    task = run_task(_document(host_python), settings=configured)
    task.wait(TIMEOUT_S)
    assert lines_of(task, "app") == [
        "container-role ASIATASKROLE secret-of-ASIATASKROLE token-of-ASIATASKROLE"
    ], task.stopped_reason


def test_without_a_source_there_is_no_variable(settings: Settings, busybox: str) -> None:
    task = run_task(
        definition(busybox, shell("app", "env | grep -c CREDENTIALS"), taskRoleArn=ROLE),
        settings=settings,
    )
    task.wait(TIMEOUT_S)
    assert lines_of(task, "app") == ["0"]


def test_another_task_does_not_reach_them(settings: Settings, busybox: str, tmp_path: Path) -> None:
    static = tmp_path / "role.json"
    _write_static(static, "ASIATASKROLE", 3600)
    configured = msgspec.structs.replace(
        settings, credentials=CredentialSettings(source="static", static_file=str(static))
    )
    holder = shell("app", "echo $AWS_CONTAINER_CREDENTIALS_RELATIVE_URI; sleep 300", stopTimeout=2)
    with run_task(definition(busybox, holder, taskRoleArn=ROLE), settings=configured) as first:
        path = next(line.text for line in first.logs("app", follow=True)).decode()
        assert path.startswith("/v2/credentials/")
        script = (
            f"wget -q -O - http://169.254.170.2{path} || echo refused;"
            f" wget -q -T 2 -O - http://{first.address}:51679{path} || echo unreachable;"
            f" wget -q -T 2 -O - http://{first.address}:80{path} || echo unreachable"
        )
        second = run_task(definition(busybox, shell("app", script)), settings=configured)
        second.wait(TIMEOUT_S)
        lines = [line.text for line in second.logs("app") if line.stream == "stdout"]
    assert lines == [b"refused", b"unreachable", b"unreachable"]
