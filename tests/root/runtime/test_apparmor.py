"""The AppArmor profile of tasks, where this kernel enforces AppArmor, and without it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings, run_task
from fargatelite.errors import HostUnsupported
from fargatelite.runtime.apparmor import is_enabled, load_profile
from fargatelite.runtime.check import run_checks
from fargatelite.sandbox.apparmor import PROFILE_NAME

from .test_run_task import TIMEOUT_S, definition, run, shell, text_of

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]
enforced = pytest.mark.skipif(not is_enabled(), reason="AppArmor is not enabled in this kernel")
SECURITYFS = "/sys/kernel/security"


@pytest.fixture
def confined(settings: Settings) -> Iterator[Settings]:
    """Settings that require the profile. A guest without systemd has nobody else to mount this."""
    is_ours = not os.path.ismount(SECURITYFS) and "FARGATELITE_TEST_GUEST" in os.environ
    if is_ours:
        subprocess.run(["mount", "-t", "securityfs", "securityfs", SECURITYFS], check=True)
    yield msgspec.structs.replace(settings, apparmor="required")
    if is_ours:
        subprocess.run(["umount", SECURITYFS], check=True)


@enforced
@pytest.mark.parametrize("has_init", [False, True])
def test_a_container_and_its_health_check_have_it(
    confined: Settings, busybox: str, has_init: bool
) -> None:
    script = (
        "cat /proc/1/attr/current; sleep 1 & cat /proc/$!/attr/current;"
        "while ! [ -s /checked ]; do sleep 0.1; done; cat /checked"
    )
    task = run(
        confined, busybox,
        {
            **shell("app", script),
            "linuxParameters": {"initProcessEnabled": has_init},
            "healthCheck": {
                "command": ["CMD-SHELL", "cat /proc/self/attr/current > /new; mv /new /checked"],
                "interval": 5,
            },
        },
    )  # fmt: skip
    assert text_of(task, "app").splitlines() == [f"{PROFILE_NAME} (enforce)"] * 3


@enforced
def test_it_denies_what_nothing_else_did(
    confined: Settings, settings: Settings, busybox: str
) -> None:
    """PID 1 of this task's pid namespace is nobody's program, outside the profile."""
    script = (
        "kill -0 1 && echo signalled; sleep 9 & kill $! && echo own;"
        "(: > /proc/pressure/cpu) 2>&1 | grep -c denied"
    )
    said = {}
    for name, chosen in (("with", confined), ("without", settings)):
        task = run(chosen, busybox, shell("app", f"exec 2>&1; {script}"), pidMode="task")
        said[name] = text_of(task, "app")
    assert said["without"].splitlines() == ["signalled", "own", "0"], said
    assert "signalled" not in said["with"], said
    assert said["with"].splitlines()[-2:] == ["own", "1"], said


@enforced
def test_check_says_so(confined: Settings) -> None:
    (row,) = (row for row in run_checks(confined) if row.name == "AppArmor")
    assert (row.state, row.detail) == ("ok", f"profile {PROFILE_NAME}")


@enforced
def test_without_its_parser_a_task_that_requires_it_does_not_run(
    confined: Settings, busybox: str
) -> None:
    if f"{PROFILE_NAME} (" in Path(f"{SECURITYFS}/apparmor/profiles").read_text():
        subprocess.run(
            ["apparmor_parser", "--remove"], input=f"profile {PROFILE_NAME} {{}}\n", text=True,
            check=True,
        )  # fmt: skip
    parser = next(
        path
        for path in ("/usr/sbin/apparmor_parser", "/sbin/apparmor_parser")
        if Path(path).exists()
    )
    hidden = Path(f"{parser}.hidden")
    Path(parser).rename(hidden)
    try:
        with pytest.raises(HostUnsupported, match="apt-get install apparmor"):
            load_profile()
        task = run_task(definition(busybox, shell("app", "exit 0")), settings=confined)
        task.wait(TIMEOUT_S)
        assert "apt-get install apparmor" in (task.containers["app"].reason or "")
        relaxed = msgspec.structs.replace(confined, apparmor="auto")
        (row,) = (row for row in run_checks(relaxed) if row.name == "AppArmor")
        assert row.state == "degraded"
        assert run(relaxed, busybox, shell("app", "exit 3")).exit_code == 3
    finally:
        hidden.rename(parser)


@pytest.mark.skipif(is_enabled(), reason="AppArmor is enabled in this kernel")
def test_without_it_who_requires_it_is_refused(settings: Settings, busybox: str) -> None:
    required = msgspec.structs.replace(settings, apparmor="required")
    task = run_task(definition(busybox, shell("app", "exit 0")), settings=required)
    task.wait(TIMEOUT_S)
    assert "boot with apparmor=1" in (task.containers["app"].reason or "")
    auto = msgspec.structs.replace(settings, apparmor="auto")
    assert run(auto, busybox, shell("app", "exit 3")).exit_code == 3
    states = {row.name: row.state for row in run_checks(required)}
    assert states["AppArmor"] == "missing"
