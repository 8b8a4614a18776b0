"""What a container definition asks for, seen from inside the container."""

from __future__ import annotations

import subprocess
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.taskdef.fields import RestartPolicy
from fargatelite.taskdef.load import load_definition
from tests.fixtures.images import (
    RunningRegistry,
    build_oci_layout,
    busybox_files,
    directory,
    tar_layer,
)
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

TIMEOUT_S = patient(60)


def definition(image: str, *containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "family": "features",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [{"image": image, **container} for container in containers],
        **more,
    }


def shell(name: str, script: str, **more: Any) -> dict[str, Any]:
    command = {"entryPoint": ["/bin/sh", "-c"], "command": [script]}
    return {"name": name, **command, "stopTimeout": 2, **more}  # a shell that is pid 1 has no TERM


def lines_of(task: Task, container: str) -> list[str]:
    text = b""
    for line in task.logs(container):
        text += line.text + (b"" if line.is_partial else b"\n")
    return text.decode().splitlines()


def run(settings: Settings, document: dict[str, Any]) -> Task:
    task = run_task(document, settings=settings)
    task.wait(TIMEOUT_S)
    return task


def check(task: Task) -> None:
    codes = {name: (c.exit_code, c.reason) for name, c in task.containers.items()}
    logs = {name: lines_of(task, name) for name in task.containers}
    assert all(code == 0 for code, _ in codes.values()), (codes, logs)


@pytest.mark.field(
    "containerDefinitions[].linuxParameters.tmpfs[].containerPath",
    "containerDefinitions[].linuxParameters.tmpfs[].size",
    "containerDefinitions[].linuxParameters.tmpfs[].mountOptions",
)
@pytest.mark.field("linuxParameters.tmpfs")
def test_tmpfs(settings: Settings, busybox: str) -> None:
    tmpfs = [
        {"containerPath": "/scratch", "size": 7, "mountOptions": ["mode=0710", "uid=1000"]},
        {"containerPath": "/scratch/inner", "size": 1, "mountOptions": ["ro", "exec"]},
        {"containerPath": "/dev/shm", "size": 16},
    ]
    script = (
        "grep -E ' /(scratch|dev/shm)' /proc/mounts; stat -c '%a %u %g' /scratch;"
        " dd if=/dev/zero of=/scratch/big bs=1M count=20 2>/dev/null; stat -c %s /scratch/big"
    )
    task = run(settings, definition(busybox, shell("c", script, linuxParameters={"tmpfs": tmpfs})))
    check(task)
    lines = lines_of(task, "c")
    mounts = {line.split()[1]: line.split()[3].split(",") for line in lines if " tmpfs " in line}
    assert {"rw", "nosuid", "nodev", "noexec", "size=7168k"} <= set(mounts["/scratch"])
    assert {"ro", "nosuid", "nodev", "size=1024k"} <= set(mounts["/scratch/inner"])
    assert "noexec" not in mounts["/scratch/inner"]
    assert "size=16384k" in mounts["/dev/shm"]
    assert lines[-2] == "710 1000 0"
    assert int(lines[-1]) <= 7 * 2**20  # the rest was ENOSPC


@pytest.mark.field("linuxParameters.initProcessEnabled")
def test_init_is_pid_1_reaps_and_passes_signals_on(settings: Settings, busybox: str) -> None:
    script = (
        "cat /proc/1/comm; echo main $$; (sleep 0.2 &) ; trap 'echo got TERM; exit 7' TERM;"
        " sleep 0.5; ls -d /proc/[0-9]* | wc -l; grep -c . /proc/1/mem 2>&1 | head -1;"
        " echo ready; while :; do sleep 0.05; done"
    )
    task = run_task(
        definition(busybox, shell("c", script, linuxParameters={"initProcessEnabled": True})),
        settings=settings,
    )
    for line in task.logs("c", follow=True):
        if line.text == b"ready":
            break
    task.stop()
    lines = lines_of(task, "c")
    assert lines[0] == "init"
    assert lines[1] == "main 2"
    assert int(lines[2]) <= 4  # init, the shell, ls, wc: the orphan is gone
    assert "Permission denied" in lines[3]  # the shim's copied memory is out of reach
    assert lines[-1] == "got TERM"
    assert task.containers["c"].exit_code == 7


@pytest.mark.field("linuxParameters.initProcessEnabled")
def test_init_ends_as_its_main_process_does(settings: Settings, busybox: str) -> None:
    task = run(
        settings,
        definition(
            busybox,
            shell("c", "kill -SEGV $$", linuxParameters={"initProcessEnabled": True}),
        ),
    )
    assert task.containers["c"].exit_code == 139


@pytest.mark.field(
    "containerDefinitions[].systemControls[].namespace",
    "containerDefinitions[].systemControls[].value",
)
@pytest.mark.field("systemControls")
def test_sysctls_of_the_tasks_namespaces(settings: Settings, busybox: str) -> None:
    controls = [
        {"namespace": "net.ipv4.ip_unprivileged_port_start", "value": "80"},
        {"namespace": "kernel.msgmax", "value": "4096"},
        {"namespace": "kernel.sem", "value": "250 32000 100 200"},
        {"namespace": "fs.mqueue.msg_max", "value": "20"},
    ]
    script = (
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
        " /proc/sys/kernel/msgmax /proc/sys/kernel/sem /proc/sys/fs/mqueue/msg_max;"
        " echo 1 > /proc/sys/kernel/msgmax; true"
    )
    task = run(settings, definition(busybox, shell("c", script, systemControls=controls)))
    check(task)
    lines = lines_of(task, "c")
    assert lines[:2] == ["80", "4096"]
    assert lines[2].split() == ["250", "32000", "100", "200"]
    assert lines[3] == "20"
    assert "Read-only file system" in lines[4]


def test_a_sysctl_that_old_kernels_keep_to_the_host(settings: Settings, busybox: str) -> None:
    """net.core belongs to the host's user namespace alone in Linux 6.1: a task says so."""
    name = "/proc/sys/net/core/somaxconn"
    controls = [{"namespace": "net.core.somaxconn", "value": "777"}]
    task = run(settings, definition(busybox, shell("c", f"cat {name}", systemControls=controls)))
    there = subprocess.run(["unshare", "-Urn", "test", "-e", name], check=False).returncode == 0
    if there:
        assert lines_of(task, "c") == ["777"]
    else:
        assert f"openat2 {name}: No such file" in (task.containers["c"].reason or "")


@pytest.mark.field("pidMode")
def test_shared_pid_namespace(settings: Settings, busybox: str) -> None:
    first = shell(
        "first", "(sleep 300 &); echo up; until [ -e /proc/1 ]; do :; done; sleep 0.4",
        essential=False,
    )  # fmt: skip
    script = (
        "ps -o pid,user,comm; sleep 0.8; ps -o comm | grep -c sleep; kill -9 1; cat /proc/1/comm"
    )
    second = shell("second", script, dependsOn=[{"containerName": "first", "condition": "START"}])
    task = run(settings, definition(busybox, first, second, pidMode="task"))
    check(task)
    lines = lines_of(task, "second")
    assert any("sh" in line.split() or "sleep" in line.split() for line in lines if line)
    rows = [line.split() for line in lines]
    assert ["1", "65534", "init"] in rows or ["1", "nobody", "init"] in rows
    # What the first one left behind went with it, although the namespace lives.
    assert lines[-2] == "1" or lines[-2] == "0"
    assert lines[-1] == "init"


@pytest.mark.field(
    "containerDefinitions[].mountPoints[].sourceVolume",
    "containerDefinitions[].mountPoints[].containerPath",
    "containerDefinitions[].mountPoints[].readOnly",
    "volumes[].name",
    "volumes[].host",
)
@pytest.mark.field("mountPoints")
@pytest.mark.field("volumes")
def test_containers_share_a_volume(settings: Settings, busybox: str) -> None:
    writer = shell(
        "writer", "stat -c '%a %u' /out; echo data > /out/file; mkdir /out/sub", essential=False,
        mountPoints=[{"sourceVolume": "shared", "containerPath": "/out"}],
    )  # fmt: skip
    reader = shell(
        "reader",
        "exec 2>&1; cat /in/file /other/file; echo x > /in/file; test ! -e /out && echo done",
        dependsOn=[{"containerName": "writer", "condition": "SUCCESS"}],
        mountPoints=[
            {"sourceVolume": "shared", "containerPath": "/in", "readOnly": True},
            {"sourceVolume": "shared", "containerPath": "/other"},
        ],
    )  # fmt: skip
    task = run(
        settings,
        definition(busybox, writer, reader, volumes=[{"name": "shared", "host": {}}]),
    )
    check(task)
    assert lines_of(task, "writer") == ["755 0"]
    lines = lines_of(task, "reader")
    assert lines[:2] == ["data", "data"]
    assert "Read-only file system" in lines[2]
    assert lines[3] == "done"


@pytest.fixture(scope="module")
def with_volume(registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with a VOLUME that has contents, an owner and a mode."""
    files = busybox_files()
    files["data"] = directory("data", 0o1750, 1000)
    files["data/seed"] = b"from the image"
    files["data/deep"] = directory("data/deep", 0o700, 70000)
    layout = build_oci_layout(
        tmp_path_factory.mktemp("volume") / "layout",
        [tar_layer(files)],
        {"Volumes": {"/data": {}, "/empty": {}}},
    )
    return registry.push(layout, "with-volume")


@pytest.mark.field("volumes")
def test_a_volume_begins_with_what_the_image_has(settings: Settings, with_volume: str) -> None:
    script = "stat -c '%a %u %g' /data /data/deep; cat /data/seed; ls /elsewhere"
    task = run(
        settings,
        definition(
            with_volume,
            shell(
                "c", script,
                mountPoints=[
                    {"sourceVolume": "v", "containerPath": "/data"},
                    {"sourceVolume": "w", "containerPath": "/elsewhere"},
                ],
            ),
            volumes=[{"name": "v"}, {"name": "w"}],
        ),
    )  # fmt: skip
    check(task)
    # 70000 is beyond the task's ids: nobody's, never another task's.
    assert lines_of(task, "c") == ["1750 1000 1000", "700 65534 65534", "from the image"]


@pytest.mark.field(
    "containerDefinitions[].volumesFrom[].sourceContainer",
    "containerDefinitions[].volumesFrom[].readOnly",
)
@pytest.mark.field("volumesFrom")
def test_volumes_from(settings: Settings, with_volume: str) -> None:
    source = shell(
        "source", "echo more > /data/more; echo 1 > /mine/1", essential=False,
        mountPoints=[{"sourceVolume": "v", "containerPath": "/mine"}],
    )  # fmt: skip
    taker = shell(
        "taker", "cat /data/seed /data/more /mine/1; touch /data/no /mine/no",
        volumesFrom=[{"sourceContainer": "source", "readOnly": True}],
        dependsOn=[{"containerName": "source", "condition": "COMPLETE"}],
    )  # fmt: skip
    task = run(settings, definition(with_volume, source, taker, volumes=[{"name": "v"}]))
    lines = lines_of(task, "taker")
    assert lines[:3] == ["from the imagemore", "1"] or lines[0].startswith("from the image")
    assert sum("Read-only file system" in line for line in lines) == 2
    assert task.containers["taker"].exit_code == 1


@pytest.mark.field("volumesFrom")
def test_volumes_come_from_the_sources_image_whoever_starts_first(
    settings: Settings, busybox: str, with_volume: str
) -> None:
    """The taker is defined first, waits for nothing, and its image has no such directory."""
    taker = shell(
        "taker", "cat /data/seed; touch /data/taken",
        volumesFrom=[{"sourceContainer": "source"}], essential=False,
    )  # fmt: skip
    source = {
        **shell("source", "until [ -e /data/taken ]; do sleep 0.05; done"),
        "image": with_volume,
    }
    task = run(settings, definition(busybox, taker, source))
    check(task)
    assert lines_of(task, "taker") == ["from the image"]


@pytest.mark.field("readonlyRootFilesystem")
def test_volumes_stay_writable_below_a_read_only_root(settings: Settings, with_volume: str) -> None:
    script = "touch /data/a /v/b /t/c && ! touch /d 2>/dev/null && ls /data /v /t"
    task = run(
        settings,
        definition(
            with_volume,
            shell(
                "c", script, readonlyRootFilesystem=True,
                mountPoints=[{"sourceVolume": "v", "containerPath": "/v"}],
                linuxParameters={"tmpfs": [{"containerPath": "/t", "size": 1}]},
            ),
            volumes=[{"name": "v"}],
        ),
    )  # fmt: skip
    check(task)


def test_a_mount_whose_target_is_a_link_into_proc_hides_nothing(
    settings: Settings, registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """CVE-2019-16884: an image's link must not let a volume stand in for procfs."""
    from tests.fixtures.images import link

    files = busybox_files()
    files["trap"] = link("trap", "/proc")
    files["proc"] = directory("proc")
    layout = build_oci_layout(tmp_path_factory.mktemp("trap") / "layout", [tar_layer(files)])
    image = registry.push(layout, "trap")
    task = run(
        settings,
        definition(
            image,
            shell(
                "c", "cat /proc/self/comm; grep -c ' /proc proc ' /proc/mounts",
                mountPoints=[{"sourceVolume": "v", "containerPath": "/trap"}],
            ),
            volumes=[{"name": "v"}],
        ),
    )  # fmt: skip
    check(task)
    assert lines_of(task, "c") == ["cat", "1"]


@pytest.mark.field("pseudoTerminal")
def test_pseudo_terminal(settings: Settings, busybox: str) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && tty; stat -c %u $(tty); ls -l /dev/console; ps"
    task = run(
        settings,
        definition(busybox, shell("c", script, pseudoTerminal=True, interactive=True, user="1000")),
    )
    check(task)
    lines = [line.rstrip("\r") for line in lines_of(task, "c")]
    assert lines[0] == "/dev/pts/0"
    assert lines[1] == "1000"
    assert lines[2].startswith("crw--w----")


@pytest.mark.field("interactive")
def test_open_stdin_waits_and_a_closed_one_ends(settings: Settings, busybox: str) -> None:
    script = "timeout 0.3 cat; echo $?"
    for interactive, code in ((True, "143"), (False, "0")):
        task = run(settings, definition(busybox, shell("c", script, interactive=interactive)))
        assert lines_of(task, "c")[-1] == code


@pytest.mark.field(
    "containerDefinitions[].restartPolicy.enabled",
    "containerDefinitions[].restartPolicy.ignoredExitCodes",
)
@pytest.mark.field("restartPolicy")
def test_a_restart_keeps_the_writable_layer(settings: Settings, busybox: str) -> None:
    script = "echo run >> /runs; sleep 1.2; cat /runs | wc -l; [ $(wc -l < /runs) = 3 ] && exit 9"
    loaded = load_definition(definition(busybox, shell("c", script + "; exit 1")))
    container = msgspec.structs.replace(
        loaded.containers[0],
        # A minute is the least that a definition may say; a record may say less.
        restart_policy=RestartPolicy(
            enabled=True, ignored_exit_codes=(9,), restart_attempt_period_s=1
        ),
    )
    task = run_task(msgspec.structs.replace(loaded, containers=(container,)), settings=settings)
    assert task.wait(TIMEOUT_S) == 9
    assert lines_of(task, "c") == ["1", "2", "3"]
    assert task.state.container("c").restart_count == 2
    assert task.bill().cpu_seconds is not None
