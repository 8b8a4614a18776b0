"""Work that ends: steps in order, exit codes, signals, what stops a task and what does not."""

from __future__ import annotations

import pytest

from tests.fixtures.published import TIMEOUT_S, Published

pytestmark = [pytest.mark.root, pytest.mark.registry]

GIB = 2**30
UNMET_DEPENDENCY = 143
"""The exit code of a container that never started since its dependency cannot be met."""


@pytest.mark.field("containerDefinitions[].dependsOn[].condition", "volumes[].host")
def test_migration_before_start(published: Published) -> None:
    ran = published.run("migrate-then-serve")
    assert ran.lines("app") == ["CREATE TABLE schema_migrations", "puma started"], ran.why
    assert ran.codes == {"migrate": 0, "app": 0}
    assert "ro" in ran.mount("app", "/state")["flags"]


def test_a_failed_migration_starts_nothing(published: Published) -> None:
    ran = published.run("migration-fails")
    assert ran.codes == {"migrate": 3, "app": UNMET_DEPENDENCY}
    assert ran.task.stop_code == "TaskFailedToStart"
    reason = ran.task.containers["app"].reason or ""
    assert reason.startswith("CannotStartContainerError: dependency on container migrate"), ran.why
    assert ran.lines("app") == []
    assert ran.lines("migrate") == ["PG::UndefinedTable"]


def test_a_step_that_need_not_succeed(published: Published) -> None:
    ran = published.run("fetch-config")
    assert ran.codes == {"fetch-config": 8, "prometheus": 0}, ran.why
    # The volume is root's, 0755: uid 1000 cannot write into it, as on Fargate.
    assert any("Permission denied" in line for line in ran.lines("fetch-config"))
    assert ran.lines("prometheus") == ["serving"]


@pytest.mark.field("ephemeralStorage.sizeInGiB", "cpu", "memory")
def test_batch(published: Published) -> None:
    ran = published.run("batch-transcode")
    size_kib = int(ran.lines("ffmpeg")[0].split()[1])
    assert 95 * GIB < size_kib * 1024 < 101 * GIB, ran.why
    assert ran.lines("ffmpeg")[1] == str(32 * 2**20)
    assert 95 * GIB < ran.seen("ffmpeg")["disk_bytes"] < 101 * GIB
    assert "AWS_BATCH_JOB_ARRAY_INDEX" in ran.seen("ffmpeg")["environment"]
    shown = ran.task.describe()
    assert (shown["cpu"], shown["memory"]) == ("4096", "8192")
    assert shown["ephemeralStorage"] == {"sizeInGiB": 100}


@pytest.mark.field(
    "containerDefinitions[].logConfiguration.options", "containerDefinitions[].command"
)
def test_cron_with_overrides(published: Published) -> None:
    """As EventBridge's schedule starts it: another command and a date."""
    override = {
        "name": "report",
        "command": ["sh", "/srv/report.sh", "monthly"],
        "environment": [{"name": "REPORT_DATE", "value": "2026-10-31"}],
    }
    ran = published.run(
        "cron-report",
        overrides={"containerOverrides": [override], "cpu": "512", "memory": "1024"},
        started_by="events-rule/nightly",
    )
    assert ran.lines("report") == ["report monthly for 2026-10-31"], ran.why
    events = published.log_events("/ecs/nightly-report", f"report/report/{ran.task.id}")
    assert events[-1] == "report monthly for 2026-10-31"
    shown = ran.task.describe()
    assert (shown["cpu"], shown["startedBy"]) == ("512", "events-rule/nightly")


@pytest.mark.field("containerDefinitions[].stopTimeout")
def test_a_worker_drains_its_queue(published: Published) -> None:
    worker, stubborn = published.start("queue-worker"), published.start("stop-timeout")
    worker.until_line("worker", "polling")
    stubborn.until_line("java", "started")
    worker.task.stop()
    assert worker.lines("worker") == ["polling", "draining", "drained"]
    assert worker.codes == {"worker": 0}
    stubborn.task.stop()
    assert stubborn.codes == {"java": 137}


@pytest.mark.field("containerDefinitions[].essential")
def test_exit_codes(published: Published) -> None:
    ran = published.run("exit-code")
    assert ran.task.exit_code == ran.codes["check"] == 42
    assert ran.task.stop_code == "EssentialContainerExited"


def test_a_sidecar_that_dies_stops_nothing(published: Published) -> None:
    ran = published.run("sidecar-dies")
    assert ran.codes == {"search": 0, "warmer": 139}
    assert ran.lines("search") == ["still here"]


@pytest.mark.field("containerDefinitions[].restartPolicy.restartAttemptPeriod")
def test_no_restart_before_the_attempt_period(published: Published) -> None:
    """A container that has not run for `restartAttemptPeriod` stays stopped."""
    ran = published.run("restart-policy")
    assert ran.codes == {"gateway": 0, "cert-renewer": 5}, ran.why
    assert ran.lines("cert-renewer") == ["run"]
    assert ran.task.state.container("cert-renewer").restart_count == 0


def test_three_steps(published: Published) -> None:
    ran = published.run("data-pipeline")
    assert ran.lines("load") == ["100"], ran.why
    started = [
        ran.task.state.container(name).started_at_ns or 0
        for name in ("extract", "transform", "load")
    ]
    assert started == sorted(started)


@pytest.mark.field("containerDefinitions[].memory")
def test_out_of_memory(published: Published) -> None:
    ran = published.run("out-of-memory")
    assert ran.codes == {"render": 137}
    assert (ran.task.containers["render"].reason or "").startswith("OutOfMemoryError"), ran.why
    assert int(ran.seen("render")["memory_limit"]) == 64 * 2**20


@pytest.mark.field("containerDefinitions[].startTimeout")
def test_a_dependency_that_takes_too_long(published: Published) -> None:
    ran = published.run("start-timeout")
    assert ran.codes["serve"] == UNMET_DEPENDENCY
    assert ran.task.stop_code == "TaskFailedToStart", ran.why
    assert ran.lines("serve") == []


@pytest.mark.field("containerDefinitions[].interactive", "containerDefinitions[].pseudoTerminal")
def test_a_terminal(published: Published) -> None:
    ran = published.run("terminal")
    assert ran.seen("console")["ttys"] == [1, 1, 1]
    assert ran.seen("console")["fds"]["0"] == "/dev/pts/0"
    assert ran.lines("console") == ["terminal"], ran.why


def test_many_at_once(published: Published) -> None:
    """Four services side by side, two of them on port 80, keep apart."""
    names = {
        "queue-worker": "worker", "port-80-as-non-root": "node", "nginx-reverse-proxy": "nginx",
        "stop-timeout": "java",
    }  # fmt: skip
    running = [published.start(name) for name in names]
    for ran, container in zip(running, names.values(), strict=True):
        ran.task.until("RUNNING", TIMEOUT_S)
        ran.until_line(container, '{"pid":')
    seen = [ran.seen(container) for ran, container in zip(running, names.values(), strict=True)]
    assert len({ran.task.address for ran in running}) == len(names)
    for what in ("uid_map", "gid_map", "hostname"):
        assert len({item[what] for item in seen}) == len(names), what
    for kind in ("net", "mnt", "pid", "ipc", "uts", "user", "cgroup"):
        assert len({item["namespaces"][kind] for item in seen}) == len(names), kind
