"""Tasks for real: registry, image, kernel; each seen from inside and from the handle."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from fargatelite import Settings, Task, run_task
from fargatelite.errors import InvalidTaskDefinition
from fargatelite.runtime.events import ContainerEvent, PullEvent, TaskEvent
from fargatelite.runtime.gc import collect
from fargatelite.runtime.record import list_records, read_record
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

TIMEOUT_S = patient(60)


def definition(image: str, *containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "family": "test",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "512",
        "memory": "1024",
        "containerDefinitions": [{"image": image, **container} for container in containers],
        **more,
    }


def shell(name: str, script: str, **more: Any) -> dict[str, Any]:
    command = {"entryPoint": ["/bin/sh", "-c"], "command": [script]}
    return {"name": name, **command, "stopTimeout": 2, **more}  # a shell that is pid 1 has no TERM


def text_of(task: Task, container: str) -> str:
    out = b""
    for line in task.logs(container):
        out += line.text + (b"" if line.is_partial else b"\n")
    return out.decode()


def run(settings: Settings, image: str, *containers: dict[str, Any], **more: Any) -> Task:
    task = run_task(definition(image, *containers, **more), settings=settings)
    task.wait(TIMEOUT_S)
    return task


@pytest.mark.field("containerDefinitions")
def test_exit_code_and_output_come_back(settings: Settings, busybox: str) -> None:
    task = run(settings, busybox, shell("app", "echo out; echo err >&2; exit 7"))
    assert task.exit_code == task.containers["app"].exit_code == 7
    assert sorted(text_of(task, "app").split()) == ["err", "out"]
    assert (task.last_status, task.stop_code) == ("STOPPED", "EssentialContainerExited")
    assert task.stopped_reason == "Essential container in task exited"


@pytest.mark.field("containerDefinitions[].name", "containerDefinitions[].image")
def test_the_image_says_what_runs(settings: Settings, busybox: str) -> None:
    task = run(settings, busybox, {"name": "app"})
    assert text_of(task, "app") == "from the image\n"


@pytest.mark.field(
    "containerDefinitions[].environment[].name",
    "containerDefinitions[].environment[].value",
    "containerDefinitions[].user",
    "containerDefinitions[].workingDirectory",
    "containerDefinitions[].entryPoint",
    "containerDefinitions[].command",
)
def test_environment_user_and_directory(settings: Settings, busybox: str) -> None:
    task = run(
        settings,
        busybox,
        shell(
            "app",
            "env; id; pwd; cat /etc/hosts; hostname",
            user="app",
            workingDirectory="/made/here",
            environment=[{"name": "MINE", "value": "yes"}],
        ),
    )
    text = text_of(task, "app")
    for line in ("MINE=yes", "FROM_IMAGE=1", "AWS_EXECUTION_ENV=AWS_ECS_FARGATE",
                 "AWS_REGION=us-east-1", "HOME=/home/app", "/made/here"):  # fmt: skip
        assert line in text.splitlines()
    assert f"ECS_CONTAINER_METADATA_URI_V4=http://169.254.170.2/v4/{task.id}-0000000000" in text
    assert "uid=1000(app) gid=1001(app) groups=50(extra)" in text
    assert "127.0.0.1 localhost" in text
    assert task.address is not None
    assert f"ip-{task.address.replace('.', '-')}.ec2.internal" in text


@pytest.mark.field(
    "networkMode",
    "containerDefinitions[].dependsOn[].containerName",
    "containerDefinitions[].dependsOn[].condition",
    "containerDefinitions[].essential",
)
def test_containers_share_one_network_and_nothing_else(settings: Settings, busybox: str) -> None:
    task = run(
        settings,
        busybox,
        shell(
            "server",
            "echo hello > /index.html; exec httpd -f -p 8080 -h /",
            essential=False,
            stopTimeout=2,
        ),
        shell(
            "client",
            "until wget -q -O - http://127.0.0.1:8080/index.html 2>/dev/null; do sleep 0.1; done; "
            "ps; ls /index.html; ip -4 addr show eth1",
            dependsOn=[{"containerName": "server", "condition": "START"}],
        ),
    )
    text = text_of(task, "client")
    assert text.startswith("hello\n")
    assert "httpd" not in text
    assert "/index.html: No such file" in text
    assert f"inet {task.address}/" in text


def test_the_host_reaches_a_task_and_a_published_port(settings: Settings, busybox: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = shell("app", "echo page > /index.html; exec httpd -f -p 80 -h /", stopTimeout=2)
    task = run_task(definition(busybox, server), settings=settings, publish=[f"{port}:80"])
    try:
        task.until("RUNNING", TIMEOUT_S)
        for url in (f"http://{task.address}/", f"http://127.0.0.1:{port}/"):
            deadline = time.monotonic() + patient(10)
            while True:
                try:
                    with urllib.request.urlopen(url, timeout=patient(2)) as response:
                        assert response.read() == b"page\n"
                    break
                except OSError:
                    assert time.monotonic() < deadline, url
    finally:
        task.stop()


@pytest.mark.field(
    "containerDefinitions[].healthCheck.command", "containerDefinitions[].dependsOn[].condition"
)
def test_health_check_orders_the_start(settings: Settings, busybox: str) -> None:
    task = run(
        settings,
        busybox,
        shell(
            "db",
            "sleep 1; touch /ready; sleep 100",
            essential=False,
            stopTimeout=2,
            healthCheck={"command": ["CMD-SHELL", "test -e /ready"], "interval": 5, "retries": 2},
        ),
        shell(
            "app",
            "echo started",
            dependsOn=[{"containerName": "db", "condition": "HEALTHY"}],
        ),
    )
    assert text_of(task, "app") == "started\n"
    assert task.containers["db"].health_status == "HEALTHY"
    assert task.exit_code == 0


@pytest.mark.field("containerDefinitions[].stopTimeout")
def test_stop_asks_first_and_kills_then(settings: Settings, busybox: str) -> None:
    polite = shell(
        "polite", "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.1; done"
    )
    stubborn = shell("stubborn", "trap '' TERM; while :; do sleep 0.1; done", stopTimeout=2)
    task = run_task(definition(busybox, polite, stubborn), settings=settings)
    task.until("RUNNING", TIMEOUT_S)
    for line in task.logs("polite", follow=True):
        assert line.text == b"ready"
        break
    began = time.monotonic()
    task.stop("because")
    assert 1.5 < time.monotonic() - began < 10
    assert task.containers["polite"].exit_code == 4
    assert task.containers["stubborn"].exit_code == 137
    assert (task.stop_code, task.stopped_reason) == ("UserInitiated", "because")
    assert text_of(task, "polite") == "ready\nbye\n"


@pytest.mark.field("containerDefinitions[].memory")
def test_out_of_memory_is_reported(settings: Settings, busybox: str) -> None:
    hog = shell("hog", "exec dd if=/dev/zero of=/dev/null bs=200M", memory=32)
    task = run(settings, busybox, hog)
    assert task.exit_code == 137
    assert task.containers["hog"].reason == (
        "OutOfMemoryError: Container killed due to memory usage"
    )


@pytest.mark.parametrize(
    ("container", "code", "words"),
    [
        ({"command": ["/nothing/here"]}, 127, "no such file or directory"),
        ({"command": ["nothing-here"]}, 127, "executable file not found in $PATH"),
        ({"command": ["/etc/passwd"]}, 126, "permission denied"),
        ({"command": ["true"], "user": "ghost"}, None, "unable to find user ghost"),
        ({"command": ["true"], "user": "4294967296"}, None, "outside 0..65534"),
    ],
    ids=["no file", "not in PATH", "not executable", "unknown user", "user beyond 32 bit"],
)
def test_what_cannot_start_says_why(
    settings: Settings, busybox: str, container: dict[str, Any], code: int | None, words: str
) -> None:
    task = run(settings, busybox, {"name": "app", **container})
    assert task.containers["app"].exit_code == code
    assert words in (task.containers["app"].reason or "")
    assert (task.containers["app"].reason or "").startswith("CannotStartContainerError: ")
    assert (task.stop_code, task.stopped_reason) == ("TaskFailedToStart", "Task failed to start")


def test_an_unknown_image_says_why(settings: Settings, registry: Any) -> None:
    task = run(settings, f"{registry.host}/ghost:1", {"name": "app"})
    assert task.stop_code == "TaskFailedToStart"
    assert (task.stopped_reason or "").startswith("CannotPullContainerError: pull image manifest")
    assert "not found" in (task.stopped_reason or "")
    assert task.bill().billed_seconds == 60, "the clock starts with the pull (contract 7.1)"


@pytest.mark.field("containerDefinitions[].readonlyRootFilesystem")
def test_read_only_root(settings: Settings, busybox: str) -> None:
    task = run(
        settings, busybox,
        shell("app", "touch /x || echo refused; touch /dev/shm/x && echo shm",
              readonlyRootFilesystem=True),
    )  # fmt: skip
    text = text_of(task, "app")
    assert "refused" in text
    assert "shm" in text


@pytest.mark.field(
    "containerDefinitions[].memory",
    "containerDefinitions[].ulimits[].name",
    "containerDefinitions[].ulimits[].softLimit",
    "containerDefinitions[].ulimits[].hardLimit",
)
def test_limits_are_in_the_groups(settings: Settings, busybox: str) -> None:
    """Read from inside, where a container finds its own group and nobody else's, and cannot write.

    On v2 its group was an empty directory.
    """
    script = (
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; "
        "cat /proc/self/limits | grep 'open files'; "
        "echo 0 2>/dev/null >/sys/fs/cgroup/memory.max || echo read-only"
    )
    task = run(
        settings, busybox,
        shell("app", script, memory=64,
              ulimits=[{"name": "nofile", "softLimit": 512, "hardLimit": 1024}]),
    )  # fmt: skip
    text = text_of(task, "app")
    assert str(64 * 2**20) in text
    assert "512" in text.split("open files")[1]
    assert text.endswith("read-only\n")


@pytest.mark.field("cpu")
def test_cpu_is_capped_and_metered(settings: Settings, busybox: str) -> None:
    """Half a vCPU: a CPU second takes two of wall time, however many processes ask for it."""
    half = "while read -r a b c d e f g h i j k l m user system n < /proc/$$/stat"
    half += " && [ $((user + system)) -lt 50 ]; do :; done"  # of 100 ticks a second
    script = (
        # Its group's own count, v2 in microseconds and v1 in nanoseconds: what its start took, not
        # a little where the CPU is software.
        "cd /sys/fs/cgroup; cat cpu.stat cpuacct/cpuacct.usage 2>/dev/null | head -n 1;"
        f"read began n < /proc/uptime; sh -c '{half}' & sh -c '{half}' & wait;"
        " read ended n < /proc/uptime; echo $began $ended"
    )
    task = run(settings, busybox, shell("app", script))
    start, line = (line.text.decode() for line in task.logs("app"))
    name, _, number = start.rpartition(" ")
    start_s = int(number) / (1e6 if name == "usage_usec" else 1e9)
    began_s, ended_s = map(float, line.split())
    assert ended_s - began_s > 1.8
    bill = task.bill()
    assert bill.cpu_seconds is not None
    # On top of it what the shells took to end; on a busy machine all of it takes longer.
    assert 1.0 <= float(bill.cpu_seconds) < start_s + 0.5 * (ended_s - began_s) + 0.3
    assert abs(sum(c.cost for c in bill.containers) - bill.cost) == 0
    assert bill.billed_seconds == 60


@pytest.mark.field("family")
def test_describe_is_what_the_service_prints(settings: Settings, busybox: str) -> None:
    task = run_task(
        definition(busybox, shell("app", "exit 0")),
        settings=settings,
        tags={"team": "a"},
        started_by="me",
    )
    task.wait(TIMEOUT_S)
    shown = task.describe()
    model = botocore.session.get_session().get_service_model("ecs")
    shape = model.operation_model("DescribeTasks").output_shape
    report = ParamValidator().validate({"tasks": [shown]}, shape)
    assert not report.has_errors(), report.generate_report()
    assert shown["lastStatus"] == "STOPPED"
    assert shown["containers"][0]["exitCode"] == 0
    assert shown["startedBy"] == "me"
    order = [shown[name] for name in ("createdAt", "pullStartedAt", "pullStoppedAt", "startedAt",
                                      "stoppingAt", "stoppedAt")]  # fmt: skip
    assert order == sorted(order)
    assert read_record(settings, task.id).describe() == shown


def test_events_come_in_order(settings: Settings, busybox: str) -> None:
    events: list[object] = []
    task = run_task(
        definition(busybox, shell("app", "exit 0")), settings=settings, on_event=events.append
    )
    task.wait(TIMEOUT_S)
    statuses = [event.last_status for event in events if isinstance(event, TaskEvent)]
    assert statuses == ["PENDING", "ACTIVATING", "RUNNING", "DEPROVISIONING", "STOPPED"]
    containers = [event.last_status for event in events if isinstance(event, ContainerEvent)]
    assert containers == ["RUNNING", "STOPPED"]
    assert any(isinstance(event, PullEvent) for event in events)


def test_stdout_gets_the_output(settings: Settings, busybox: str) -> None:
    out = io.StringIO()
    task = run_task(
        definition(busybox, shell("app", "echo one; echo two")), settings=settings, stdout=out
    )
    task.wait(TIMEOUT_S)
    deadline = time.monotonic() + patient(10)
    while out.getvalue() != "one\ntwo\n":
        assert time.monotonic() < deadline, out.getvalue()
        time.sleep(0.01)


def test_a_context_manager_stops_the_task(settings: Settings, busybox: str) -> None:
    with run_task(definition(busybox, shell("app", "sleep 1000", stopTimeout=2)),
                  settings=settings) as task:  # fmt: skip
        task.until("RUNNING", TIMEOUT_S)
        assert task.stats()["app"]["memory_bytes"] > 0
    assert task.last_status == "STOPPED"


@pytest.mark.parametrize("moment", ["PROVISIONING", "PENDING", "ACTIVATING", "RUNNING"])
def test_a_stop_at_any_moment_leaves_nothing(settings: Settings, busybox: str, moment: str) -> None:
    task = run_task(definition(busybox, shell("app", "sleep 1000", stopTimeout=2)),
                    settings=settings)  # fmt: skip
    task.until(moment, TIMEOUT_S)
    task.stop()
    assert (task.last_status, task.stop_code) == ("STOPPED", "UserInitiated")


def test_ten_tasks_from_one_process(settings: Settings, busybox: str) -> None:
    tasks: list[Task] = []
    lock = threading.Lock()

    def start(number: int) -> None:
        task = run_task(
            definition(busybox, shell("app", f"sleep 0.5; exit {number}")), settings=settings
        )
        with lock:
            tasks.append(task)
        assert task.wait(TIMEOUT_S) == number

    threads = [threading.Thread(target=start, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(task.exit_code or 0 for task in tasks) == list(range(10))
    assert len({task.address for task in tasks}) == 10


def test_an_invalid_definition_makes_nothing(settings: Settings) -> None:
    with pytest.raises(InvalidTaskDefinition) as caught:
        run_task({"family": "x", "containerDefinitions": []}, settings=settings)
    assert len(caught.value.problems) >= 3
    assert not Path(settings.run_root).exists()


def test_tasks_do_not_reach_each_other(settings: Settings, busybox: str) -> None:
    server = run_task(
        definition(busybox, shell("app", "exec httpd -f -p 80 -h /", stopTimeout=2)),
        settings=settings,
    )
    try:
        server.until("RUNNING", TIMEOUT_S)
        attempt = f"wget -T 2 -q -O - http://{server.address}/etc/passwd && echo reached"
        client = run(settings, busybox, shell("app", f"{attempt}; true"))
        assert "reached" not in text_of(client, "app")
    finally:
        server.stop()


def test_kill_9_of_the_runner_leaves_what_gc_removes(settings: Settings, busybox: str) -> None:
    """The supervisor dies without a word; gc ends the task, records it, removes everything."""
    script = (
        "import sys, json, fargatelite\n"
        "s = fargatelite.Settings(data_root=sys.argv[1], run_root=sys.argv[2])\n"
        "t = fargatelite.run_task(json.loads(sys.argv[3]), settings=s).until('RUNNING', 60)\n"
        "print(t.id, flush=True)\n"
        "t.wait()\n"
    )
    import subprocess
    import sys

    wanted = json.dumps(definition(busybox, shell("app", "sleep 1000")))
    with subprocess.Popen(
        [sys.executable, "-c", script, settings.data_root, settings.run_root, wanted],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        task_id = process.stdout.readline().strip()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    report = collect(settings)
    assert report.failures == []
    assert report.tasks == [task_id]
    record = read_record(settings, task_id)
    assert record.state.last_status == "STOPPED"
    assert record.state.container("app").exit_code == 137
    assert collect(settings).tasks == []
    assert [item.task_id for item in list_records(settings, stopped=True)] == [task_id]


def test_a_fault_of_ours_ends_the_task_and_tells_who_waits(
    settings: Settings, busybox: str
) -> None:
    check = {"command": ["CMD", "true"], "interval": 5}
    task = run_task(
        definition(busybox, shell("app", "sleep 100", healthCheck=check)), settings=settings
    )
    task.until("RUNNING", TIMEOUT_S)
    # Nothing can be recorded any more: the next event is a fault.
    events = settings.records / task.id / "events.jsonl"
    events.unlink()
    events.mkdir()
    task.wait(TIMEOUT_S)
    assert task.last_status == "STOPPED"
    assert task.stopped_reason is not None
    assert task.stopped_reason.startswith("InternalError: ")
    assert "events.jsonl" in task.stopped_reason


def test_a_fault_while_it_is_provisioned_leaves_nothing(settings: Settings, busybox: str) -> None:
    """Removal waits for what is being made; the fixture looks for what is left."""
    for _ in range(5):
        task = run_task(definition(busybox, shell("app", "true")), settings=settings)
        events = settings.records / task.id / "events.jsonl"
        events.unlink(missing_ok=True)
        events.mkdir()
        task.stop()
        assert task.last_status == "STOPPED"


def test_describe_tells_where_the_launch_went(settings: Settings, busybox: str) -> None:
    task = run_task(definition(busybox, shell("app", "true")), settings=settings)
    task.wait(TIMEOUT_S)
    attributes = {item["name"]: item["value"] for item in task.describe()["attributes"]}
    assert attributes.pop("ecs.cpu-architecture") == "x86_64"
    assert {"network", "start-app", "prepare-app", "task-cgroup"} <= {
        name.removeprefix("fargatelite.phase-us.") for name in attributes
    }
    assert all(int(value) >= 0 for value in attributes.values())


def test_a_process_without_tasks_holds_no_inotify(settings: Settings, busybox: str) -> None:
    """A user has 128 of them; a process that ran tasks below many roots took one for each."""

    def count() -> int:
        found = 0
        for path in Path("/proc/self/fd").iterdir():
            try:
                found += os.readlink(path) == "anon_inode:inotify"
            except FileNotFoundError:
                continue  # the descriptor of this listing
        return found

    before = count()
    with run_task(definition(busybox, shell("app", "sleep 300")), settings=settings) as task:
        task.until("RUNNING", TIMEOUT_S)
        assert count() == before + 1
    deadline = time.monotonic() + 10
    while count() > before:
        assert time.monotonic() < deadline
    assert run(settings, busybox, shell("app", "exit 5")).exit_code == 5


def test_what_cannot_be_provisioned_leaves_no_process(settings: Settings, busybox: str) -> None:
    """Neither a child that nobody waits for, nor a descriptor."""
    run_task(definition(busybox, shell("app", "true")), settings=settings).wait(TIMEOUT_S)
    before = len(list(Path("/proc/self/fd").iterdir()))
    efs = {"fileSystemId": "fs-12345678", "rootDirectory": "/missing"}
    for _ in range(3):
        task = run_task(
            definition(
                busybox,
                shell("app", "true"),
                volumes=[{"name": "v", "efsVolumeConfiguration": efs}],
            ),
            settings=settings,
        )
        task.wait(TIMEOUT_S)
        assert task.stop_code == "TaskFailedToStart"
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
    assert "fargatelite-shi" not in names
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
