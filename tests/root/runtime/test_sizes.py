"""What containers ask of their task, in the kernel's own files; images for another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fargatelite import Settings, run_task
from fargatelite.cgroups.v2 import cpu_weight
from tests.fixtures.host import read_limit
from tests.fixtures.images import RunningRegistry, build_oci_layout, busybox_files, tar_layer
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

TIMEOUT_S = patient(60)


def document(image: str, script: str, *, task: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "family": "sizes", "networkMode": "awsvpc", "cpu": "512", "memory": "1024",
        "containerDefinitions": [
            {
                "name": "c", "image": image, "entryPoint": ["/bin/sh", "-c"], "command": [script],
                "stopTimeout": 2, **more,
            }
        ],
        **(task or {}),
    }  # fmt: skip


@pytest.mark.field("containerDefinitions[].cpu", "containerDefinitions[].memoryReservation")
def test_shares_and_reservation(settings: Settings, busybox: str) -> None:
    with run_task(
        document(busybox, "sleep 300", cpu=256, memoryReservation=100), settings=settings
    ) as task:
        task.until("RUNNING", TIMEOUT_S)
        assert read_limit(task.id, "c", v1="cpu/cpu.shares", v2="cpu.weight") in (
            "256", str(cpu_weight(256)),
        )  # fmt: skip
        soft = read_limit(
            task.id, "c", v1="memory/memory.soft_limit_in_bytes", v2="memory.low"
        )  # fmt: skip
        assert soft == str(100 * 2**20)


@pytest.mark.field("containerDefinitions[].healthCheck.timeout")
def test_a_check_that_takes_too_long_has_failed(settings: Settings, busybox: str) -> None:
    check = {"command": ["CMD-SHELL", "sleep 100"], "interval": 5, "timeout": 2, "retries": 1}
    seen: list[Any] = []
    with run_task(
        document(busybox, "sleep 300", healthCheck=check), settings=settings, on_event=seen.append
    ) as task:
        changed = task._supervised.changed
        with changed:
            assert changed.wait_for(
                lambda: task.containers["c"].health_status == "UNHEALTHY", TIMEOUT_S
            )
        state = task.state.container("c")
        assert state.started_at_ns is not None
        assert state.health_since_ns is not None
        # One interval, then the time-out, and not the hundred seconds.
        assert 6.5 < (state.health_since_ns - state.started_at_ns) / 1e9 < 20


@pytest.mark.field("runtimePlatform.cpuArchitecture")
def test_a_definition_for_another_machine(settings: Settings, busybox: str) -> None:
    """What could only fail with `exec format error` is said before anything is pulled."""
    task = run_task(
        document(busybox, "exit 0", task={"runtimePlatform": {"cpuArchitecture": "ARM64"}}),
        settings=settings,
    )
    task.wait(TIMEOUT_S)
    assert task.stop_code == "TaskFailedToStart"
    reason = task.stopped_reason or ""
    assert "cannot run arm64 programs: register an interpreter for them" in reason


def test_an_image_for_another_machine(
    settings: Settings, registry: RunningRegistry, tmp_path: Path
) -> None:
    layout = build_oci_layout(
        tmp_path / "layout", [tar_layer(busybox_files())], architecture="arm64"
    )
    task = run_task(document(registry.push(layout, "arm"), "exit 0"), settings=settings)
    task.wait(TIMEOUT_S)
    assert task.stop_code == "TaskFailedToStart"
    assert "matching platform 'linux/amd64'" in (task.stopped_reason or "")
