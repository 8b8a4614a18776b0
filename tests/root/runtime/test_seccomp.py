"""`--seccomp FILE`: a filter of the user's, wherever a program of the task runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGSYS
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, find_task, run_task
from fargatelite.errors import ConfigurationInvalid, HostUnsupported
from fargatelite.runtime.detached import ensure_supervised
from tests.fixtures.cli import CommandLine

from .test_adoption import kill_supervisor
from .test_container_features import TIMEOUT_S, definition, shell
from .test_detached import await_end
from .test_strict_isolation import OF_THE_MACHINE

pytestmark = [pytest.mark.root, pytest.mark.registry]

PODMANS = "/usr/share/containers/seccomp.json"
NO_MKDIR = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "args": []}
    ],
}
DENIED = "mkdir: can't create directory '/made': No space left on device"
TRY = "mkdir /made 2>&1"


@pytest.fixture
def roots(settings: Settings) -> Iterator[Settings]:
    yield settings
    await_end(settings)


@pytest.fixture
def command_line(settings: Settings) -> Iterator[CommandLine]:
    made = CommandLine(Path(settings.data_root), Path(settings.run_root))
    yield made
    made.end()


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(NO_MKDIR))
    return path


def execute(settings: Settings, task_id: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fargatelite", "--data-root", settings.data_root, "--run-root",
         settings.run_root, "exec", "--force", task_id, *command],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    return done.stdout


def lines_of(task: Any) -> list[str]:
    return [line.text.decode() for line in task.logs("app")]


def test_podmans_profile_runs_a_task(
    command_line: CommandLine, busybox: str, tmp_path: Path
) -> None:
    path = tmp_path / "task.json"
    script = f"{TRY} && echo made; unshare -m true 2>&1; exit 3"
    path.write_text(json.dumps(definition(busybox, shell("app", script))))
    done = command_line("run", "--seccomp", PODMANS, path)
    assert done.returncode == 3, done.stderr
    assert "made" in done.stdout
    assert "Operation not permitted" in done.stdout
    assert "Warning" not in done.stderr


def test_it_holds_in_the_container_in_exec_and_in_the_health_check(
    settings: Settings, busybox: str, profile: Path
) -> None:
    check = {"command": ["CMD-SHELL", "mkdir /made > /proc/1/fd/1 2>&1; exit 0"], "interval": 5}
    with run_task(
        definition(busybox, shell("app", f"{TRY}; sleep 300", healthCheck=check, stopTimeout=2)),
        settings=settings, seccomp=profile,
    ) as task:  # fmt: skip
        task.until("RUNNING", TIMEOUT_S)
        assert execute(settings, task.id, "sh", "-c", TRY) == f"{DENIED}\n"
        seen = []
        for line in task.logs("app", follow=True):
            seen.append(line.text.decode())
            if len(seen) == 2:
                break
        assert seen == [DENIED, DENIED], "by its own command, and by the health check"
    # Without it, the same commands make the directory.
    free = run_task(definition(busybox, shell("app", f"{TRY} && ls -d /made")), settings=settings)
    free.wait(TIMEOUT_S)
    assert lines_of(free) == ["/made"]


def test_who_adopts_the_task_has_it_without_the_file(
    roots: Settings, busybox: str, profile: Path
) -> None:
    script = f"{TRY}; while [ ! -e /go ]; do sleep 0.1; done; exit 1"
    restart = {"enabled": True, "restartAttemptPeriod": 60}
    task = run_task(
        definition(
            busybox, shell("app", script, restartPolicy=restart, stopTimeout=2),
            shell("main", "sleep 300", stopTimeout=2),
        ),
        detach=True, settings=roots, seccomp=profile,
    ).until("RUNNING", TIMEOUT_S)  # fmt: skip
    profile.unlink()
    kill_supervisor(roots)
    ensure_supervised(roots)
    assert execute(roots, task.id, "-c", "app", "sh", "-c", TRY) == f"{DENIED}\n"
    adopted = find_task(task.id, settings=roots)
    adopted.stop(reason="seen")
    adopted.wait(TIMEOUT_S)
    assert set(lines_of(adopted)) == {DENIED}
    recorded = adopted.record().seccomp
    assert recorded is not None
    assert recorded.rules[0].names == ("mkdir", "mkdirat")


def test_it_goes_before_what_the_definition_says(settings: Settings, busybox: str) -> None:
    document = definition(
        busybox, shell("app", TRY, dockerSecurityOptions=["seccomp:unconfined"]),
        requiresCompatibilities=["EC2"],
    )  # fmt: skip
    free = msgspec.structs.replace(settings, allow_privileged=True)
    task = run_task(document, settings=free, launch_type="EC2", seccomp=NO_MKDIR)
    task.wait(TIMEOUT_S)
    assert lines_of(task) == [DENIED]


def test_what_it_must_let_through_is_said(settings: Settings, busybox: str) -> None:
    """The set-up of a container goes on behind the filter: what it forbids there is named."""
    document = definition(busybox, shell("app", "true"))
    rule = {"names": ["capset"], "action": "SCMP_ACT_ERRNO"}
    own = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    task = run_task(document, settings=settings, seccomp=own)
    task.wait(TIMEOUT_S)
    assert "capset" in (task.containers["app"].reason or "")
    own = {**own, "syscalls": [{**rule, "action": "SCMP_ACT_KILL_PROCESS"}]}
    assert run_task(document, settings=settings, seccomp=own).wait(TIMEOUT_S) == 128 + SIGSYS


def test_a_bad_profile_is_refused_before_anything_is_made(
    command_line: CommandLine, settings: Settings, busybox: str, profile: Path, tmp_path: Path
) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(definition(busybox, shell("app", "true"))))
    profile.write_text('{"defaultAction": "SCMP_ACT_MAYBE"}')
    for options in ([], ["--dry-run"], ["--detach"]):
        done = command_line("run", "--seccomp", profile, *options, path)
        assert done.returncode == 125
        assert done.stderr.startswith(f"Error: seccomp profile {profile}: defaultAction: 'SCMP_ACT")
    with pytest.raises(ConfigurationInvalid):
        run_task(path, settings=settings, seccomp=profile)
    assert not settings.runs.exists()


def test_a_dry_run_has_it_and_names_ignored_keys(
    command_line: CommandLine, busybox: str, profile: Path, tmp_path: Path
) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(definition(busybox, shell("app", "true"))))
    profile.write_text(json.dumps({**NO_MKDIR, "coment": "\x1b[2J"}))
    done = command_line("run", "--dry-run", "--seccomp", profile, path)
    assert done.returncode == 0, done.stderr
    assert "# system calls are filtered by the profile of --seccomp" in done.stdout
    assert done.stderr == f"Warning: {profile}: unknown keys are ignored: coment\n"

    def filters(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("seccomp ")]

    assert filters(done.stdout) != filters(command_line("run", "--dry-run", path).stdout)


def test_strict_isolation_takes_it_only_if_accepted(
    settings: Settings, busybox: str, profile: Path
) -> None:
    document = definition(busybox, shell("app", TRY))
    strict = msgspec.structs.replace(settings, accepted_weaknesses=OF_THE_MACHINE)
    with pytest.raises(HostUnsupported, match=r"built-in filter \(a seccomp profile"):
        run_task(document, settings=strict, strict_isolation=True, seccomp=profile)
    accepting = msgspec.structs.replace(
        strict, accepted_weaknesses=(*OF_THE_MACHINE, "built-in filter")
    )
    task = run_task(document, settings=accepting, strict_isolation=True, seccomp=profile)
    task.wait(TIMEOUT_S)
    assert lines_of(task) == [DENIED]
