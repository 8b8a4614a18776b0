"""`check --security` and tasks that refuse to run where a defence is weaker."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings, run_task
from fargatelite.errors import HostUnsupported
from fargatelite.settings import Weakness
from tests.fixtures.cli import CommandLine
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

MANDATORY = {
    "privileges", "user namespace of each task", "namespaces of each task", "system-call filter",
    "limits of each task", "firewall", "owners of image files",
}  # fmt: skip
OF_THE_MACHINE = ("swap limit", "kernel memory", "core dumps", "cpu side channels")
"""What a test cannot ask of the machine that it runs on."""


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[CommandLine]:
    made = CommandLine(tmp_path / "data", tmp_path / "run")
    yield made
    made.end()


def _accept(path: Path, command_line: CommandLine, *names: str) -> None:
    path.write_text(f"accepted_weaknesses = {json.dumps(names)}\n")
    command_line.environment["FARGATELITE_CONFIG"] = str(path)


def test_check_names_every_defence_and_a_missing_one(
    command_line: CommandLine, tmp_path: Path
) -> None:
    _accept(tmp_path / "config.toml", command_line, *OF_THE_MACHINE)
    done = command_line("check", "--security", "--output", "json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["defences"]}
    assert done.returncode == 0, done.stdout
    assert set(rows) == MANDATORY | set(typing.get_args(Weakness))
    assert all(set(row) == {"name", "state", "detail", "remedy"} for row in rows.values())
    assert all(bool(row["remedy"]) == (row["state"] == "accepted") for row in rows.values())

    command_line.environment["FARGATELITE_STORAGE_BACKEND"] = "unlimited"
    done = command_line("check", "--security")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("storage limit ")]
    assert line.split()[2] == "weaker"
    assert 'storage limit: set storage_backend = "auto"' in done.stdout


def test_a_strict_run_refuses_with_one_line(
    command_line: CommandLine, busybox: str, tmp_path: Path
) -> None:
    (tmp_path / "task.json").write_text(json.dumps(_document(busybox)))
    _accept(tmp_path / "config.toml", command_line, *OF_THE_MACHINE)
    done = command_line("run", "--strict-isolation", tmp_path / "task.json")
    assert done.returncode == 7, done.stderr
    command_line.environment["FARGATELITE_STORAGE_BACKEND"] = "unlimited"
    done = command_line("run", "--strict-isolation", tmp_path / "task.json")
    assert done.returncode == 125
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: strict isolation: weaker here: storage limit (")
    assert "check --security" in line
    tasks = json.loads(command_line("ps", "--all", "--output", "json").stdout)["taskArns"]
    assert len(tasks) == 1, "nothing was made for the refused one"
    done = command_line("run", tmp_path / "task.json")
    assert done.returncode == 7, done.stderr  # only who asks for it is refused


def test_the_setting_refuses_too(settings: Settings, busybox: str) -> None:
    strict = msgspec.structs.replace(
        settings, strict_isolation=True, accepted_weaknesses=OF_THE_MACHINE
    )
    assert run_task(_document(busybox), settings=strict).wait(patient(60)) == 7
    open_data = msgspec.structs.replace(strict, data_root=settings.data_root + "-open")
    Path(open_data.data_root).mkdir(mode=0o755)
    with pytest.raises(HostUnsupported, match=r"state directories \(others can enter"):
        run_task(_document(busybox), settings=open_data)
    with pytest.raises(HostUnsupported, match="privileged containers"):
        run_task(_document(busybox), settings=strict, allow_privileged=True, launch_type="EC2")


def _document(image: str) -> dict[str, object]:
    return {
        "family": "strict", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
        "cpu": "256", "memory": "512",
        "containerDefinitions": [
            {"name": "c", "image": image, "entryPoint": ["sh", "-c"], "command": ["exit 7"]}
        ],
    }  # fmt: skip
