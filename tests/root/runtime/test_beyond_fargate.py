"""[beyond_fargate] of the configuration file: off by default, and what each key grants."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fargatelite import InvalidTaskDefinition, Settings, run_task
from fargatelite.cgroups.v2 import cpu_weight
from fargatelite.errors import ConfigurationInvalid
from fargatelite.network.slot import slot_for
from fargatelite.settings import BeyondFargate
from tests.fixtures.host import read_limit
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

TIMEOUT_S = patient(60)


def document(image: str, script: str, **more: Any) -> dict[str, Any]:
    return {
        "family": "beyond",
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [
            {
                "name": "c", "image": image, "entryPoint": ["/bin/sh", "-c"], "command": [script],
                "stopTimeout": 2, **more,
            }
        ],
    }  # fmt: skip


def granting(settings: Settings, **keys: Any) -> Settings:
    return msgspec.structs.replace(settings, beyond_fargate=BeyondFargate(**keys))


def test_a_task_that_runs_too_long_is_stopped(settings: Settings, busybox: str) -> None:
    task = run_task(document(busybox, "sleep 300"), settings=granting(settings, max_run_time_s=2))
    task.wait(TIMEOUT_S)
    assert task.stopped_reason == "Task ran for 2 s, this host's beyond_fargate.max_run_time_s"
    state = task.state
    assert state.stopping_at_ns is not None
    assert state.stopping_at_ns - state.created_at_ns >= 2_000_000_000


def test_cpu_burst_is_shares_without_a_quota(settings: Settings, busybox: str) -> None:
    for keys, quota, wanted in (({}, "25000", 1024), ({"cpu_burst": True}, "-1", 256)):
        with run_task(document(busybox, "sleep 300"), settings=granting(settings, **keys)) as task:
            task.until("RUNNING", TIMEOUT_S)
            limit = read_limit(task.id, v1="cpu/cpu.cfs_quota_us", v2="cpu.max")
            assert limit.replace("max", "-1") == quota
            shares = read_limit(task.id, v1="cpu/cpu.shares", v2="cpu.weight")
            assert shares in (str(wanted), str(cpu_weight(wanted)))


def test_a_fixed_address(settings: Settings, busybox: str) -> None:
    script = "ip -4 addr show eth1 | grep -o 'inet [0-9.]*'"
    with pytest.raises(ConfigurationInvalid, match="fixed_address"):
        run_task(document(busybox, script), settings=settings, address="10.213.0.77")
    granted = granting(settings, fixed_address=True)
    with run_task(document(busybox, "sleep 300"), settings=granted) as other:
        other.until("RUNNING", TIMEOUT_S)
        assert other.address is not None
        wanted = slot_for(
            40, other.state.task_id, f"{other.address.rpartition('.')[0]}.0/20"
        ).address  # type: ignore[arg-type]
        task = run_task(document(busybox, script), settings=granted, address=wanted)
        assert task.wait(TIMEOUT_S) == 0
        assert [line.text.decode() for line in task.logs("c")] == [f"inet {wanted}"]
        taken = run_task(document(busybox, script), settings=granted, address=other.address)
        taken.wait(TIMEOUT_S)
        assert "another task's" in (taken.stopped_reason or "")
        outside = run_task(document(busybox, script), settings=granted, address="192.0.2.1")
        outside.wait(TIMEOUT_S)
        assert "no address of a task" in (outside.stopped_reason or "")


@pytest.mark.parametrize(
    ("keys", "change", "overrides"),
    [
        ({"stop_timeout_over_120": True}, {"stopTimeout": 600}, None),
        ({"ephemeral_storage_over_200": True}, {}, {"ephemeralStorage": {"sizeInGiB": 500}}),
        (
            {"overrides_over_8192": True}, {},
            {"containerOverrides": [
                {"name": "c", "environment": [{"name": "LONG", "value": "x" * 9000}]}
            ]},
        ),
    ],
)  # fmt: skip
def test_limits_that_a_host_may_lift(
    settings: Settings,
    busybox: str,
    keys: dict[str, Any],
    change: dict[str, Any],
    overrides: dict[str, Any] | None,
) -> None:
    asked = document(busybox, "exit 0", **change)
    with pytest.raises(InvalidTaskDefinition):
        run_task(asked, overrides=overrides, settings=settings)
    task = run_task(asked, overrides=overrides, settings=granting(settings, **keys))
    assert task.wait(TIMEOUT_S) == 0
