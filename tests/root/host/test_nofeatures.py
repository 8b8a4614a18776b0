"""A host without EROFS, nftables or user namespaces: each loss has its fallback or its message.

Only in the guest that is made for it: what is taken away here is the whole machine's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fargatelite import Settings, run_task
from fargatelite.runtime.api import Task
from tests.fixtures.patience import patient

pytestmark = [
    pytest.mark.root,
    pytest.mark.registry,
    pytest.mark.vm,
    pytest.mark.skipif(
        os.environ.get("FARGATELITE_TEST_GUEST") != "nofeatures",
        reason="takes features away from the whole machine",
    ),
]
NO_NFTABLES = Path("/etc/modprobe.d/no-nftables.conf")
USER_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Without the look at the host afterwards, which asks nftables."""
    return Settings(data_root=str(tmp_path / "data"), run_root=str(tmp_path / "run"))


@pytest.fixture
def no_user_namespaces() -> Iterator[None]:
    before = USER_NAMESPACES.read_text()
    USER_NAMESPACES.write_text("0")
    yield
    USER_NAMESPACES.write_text(before)


@pytest.fixture
def nftables() -> Iterator[None]:
    """Given back for one test; nothing has loaded the module before."""
    text = NO_NFTABLES.read_text()
    NO_NFTABLES.unlink()
    yield
    NO_NFTABLES.write_text(text)


def _run(settings: Settings, image: str) -> Task:
    task = run_task(
        {
            "family": "t", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
            "cpu": "256", "memory": "512",
            "containerDefinitions": [
                {"name": "c", "image": image, "entryPoint": ["sh", "-c"], "command": ["exit 9"]}
            ],
        },
        settings=settings,
    )  # fmt: skip
    task.wait(patient(60))
    return task


def _reason(task: Task) -> str:
    return str(task.describe()["stoppedReason"])


def test_check_names_every_loss(settings: Settings, no_user_namespaces: None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fargatelite", "--data-root", settings.data_root, "check",
         "--output", "json"],
        capture_output=True, text=True, check=False, timeout=patient(60),
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    states = {name: rows[name]["state"] for name in ("user namespaces", "nftables", "image mounts")}
    assert states == {
        "user namespaces": "missing", "nftables": "missing", "image mounts": "degraded",
    }  # fmt: skip
    assert "user.max_user_namespaces" in rows["user namespaces"]["remedy"]
    assert "modprobe nf_tables" in rows["nftables"]["remedy"]
    assert "directories" in rows["image mounts"]["detail"]
    assert rows["user namespaces"]["cost"] == "no task runs"
    assert rows["nftables"]["cost"] == "no task with a network of its own runs"
    assert "before its first task" in rows["image mounts"]["cost"]


def test_a_task_without_user_namespaces(
    settings: Settings, busybox: str, no_user_namespaces: None
) -> None:
    task = _run(settings, busybox)
    assert task.exit_code is None
    assert "user namespace" in _reason(task)
    assert "max_user_namespaces" in _reason(task)


def test_a_task_without_nftables(settings: Settings, busybox: str) -> None:
    task = _run(settings, busybox)
    assert task.exit_code is None
    assert "nftables" in _reason(task)
    assert "nf_tables" in _reason(task)


def test_a_task_without_erofs_runs_from_directories(
    settings: Settings, busybox: str, nftables: None
) -> None:
    assert "erofs" not in Path("/proc/filesystems").read_text()
    task = _run(settings, busybox)
    assert task.exit_code == 9, _reason(task)
