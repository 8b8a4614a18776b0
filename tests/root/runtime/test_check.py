"""`fargatelite check` on this host, and on one from which something was taken."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fargatelite import Settings
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.vm]


def _check(settings: Settings, *prefix: str, output: str = "json") -> tuple[int, str]:
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "fargatelite", "--data-root", settings.data_root,
         "--run-root", settings.run_root, "check", "--output", output],
        capture_output=True, text=True, timeout=patient(120), check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def _rows(text: str) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in json.loads(text)["checks"]}


def test_this_host_has_everything(settings: Settings) -> None:
    code, text = _check(settings)
    rows = _rows(text)
    assert code == 0, text
    assert {row["state"] for row in rows.values()} <= {"ok", "degraded"}
    named = {"cgroups", "user namespaces", "image mounts", "nftables", "meter", "ephemeral storage"}
    assert named <= set(rows)
    for row in rows.values():
        assert list(row) == ["name", "state", "detail", "cost", "remedy"]  # stable
        assert bool(row["remedy"]) == bool(row["cost"]) == (row["state"] != "ok")


def test_missing_privileges_are_named(settings: Settings) -> None:
    code, text = _check(settings, "setpriv", "--bounding-set=-sys_admin,-net_admin")
    rows = _rows(text)
    assert code == 1
    assert rows["privileges"]["state"] == "missing"
    assert rows["privileges"]["detail"] == "uid 0, without CAP_NET_ADMIN CAP_SYS_ADMIN"
    assert rows["privileges"]["cost"] == "no task runs"
    assert "run as root with all capabilities" in rows["privileges"]["remedy"]
    assert "overlayfs" not in rows  # would only say so once more


def test_missing_user_namespaces_are_named(settings: Settings) -> None:
    # The limit is a user namespace's own: nobody else's changes.
    script = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    code, text = _check(settings, "unshare", "--user", "--map-root-user", "sh", "-c", script, "sh")
    row = _rows(text)["user namespaces"]
    assert code == 1
    assert row["state"] == "missing"
    assert row["detail"] == "unshare(CLONE_NEWUSER | CLONE_NEWNET) was refused"
    assert "user.max_user_namespaces" in row["remedy"]


def test_a_low_limit_of_open_files_is_degraded(settings: Settings) -> None:
    code, text = _check(
        settings, "setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=4096:4096",
        output="table",
    )  # fmt: skip
    assert code == 0
    line = next(line for line in text.splitlines() if line.startswith("open files "))
    assert line.split()[2:6] == ["degraded", "hard", "limit", "4096"]
    assert line.endswith("Fargate's default of 65535 is cut to 4096")
    assert text.split("\n", 1)[0].split() == ["CHECK", "STATE", "DETAIL", "COST"]
    assert "open files: raise the hard limit" in text
