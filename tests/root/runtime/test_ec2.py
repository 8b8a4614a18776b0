"""The launch type EC2, seen from inside a container: what a definition may ask of its own host."""

from __future__ import annotations

import os
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from fargatelite import InvalidTaskDefinition, Settings, Task, run_task
from tests.fixtures.host import read_limit
from tests.fixtures.images import free_port
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

TIMEOUT_S = patient(60)


def container(image: str, script: str, name: str = "c", **more: Any) -> dict[str, Any]:
    return {
        "name": name, "image": image, "memory": 64, "entryPoint": ["/bin/sh", "-c"],
        "command": [script], "stopTimeout": 2, **more,
    }  # fmt: skip


def start(
    settings: Settings, *containers: dict[str, Any], allow_privileged: bool = False, **more: Any
) -> Task:
    return run_task(
        {"family": "ec2", "containerDefinitions": list(containers), **more},
        settings=settings,
        launch_type="EC2",
        allow_privileged=allow_privileged,
    )


def lines_of(task: Task, name: str = "c") -> list[str]:
    code = task.wait(TIMEOUT_S)
    text = b"".join(line.text + (b"" if line.is_partial else b"\n") for line in task.logs(name))
    lines = text.decode().splitlines()
    assert code == 0, (task.stopped_reason, task.containers[name].reason, lines)
    return lines


def look(settings: Settings, image: str, script: str, /, **more: Any) -> list[str]:
    """What a container prints; members of the task begin with `task_`."""
    task = {key[5:]: more.pop(key) for key in list(more) if key.startswith("task_")}
    return lines_of(
        start(
            settings,
            container(image, script, **more),
            allow_privileged=task.pop("allow_privileged", False),
            **task,
        )
    )


@pytest.mark.field("cpu")
@pytest.mark.field("memory")
def test_sizes_are_free(settings: Settings, busybox: str) -> None:
    with start(settings, container(busybox, "env; sleep 60", cpu=300)) as task:
        task.until("RUNNING", TIMEOUT_S)
        shown = task.describe()
        assert (shown["cpu"], shown["memory"], shown["launchType"]) == ("300", "64", "EC2")
        assert "platformVersion" not in shown
        assert task.bill().cost == 0
        assert read_limit(task.id, v1="cpu/cpu.cfs_quota_us", v2="cpu.max") in ("-1", "max")
    assert any(line.text == b"AWS_EXECUTION_ENV=AWS_ECS_EC2" for line in task.logs("c"))


@pytest.mark.field("volumes[].host.sourcePath")
def test_directories_and_files_of_the_host(
    settings: Settings, busybox: str, tmp_path: Path
) -> None:
    shared = tmp_path / "shared of host"
    shared.mkdir()
    (shared / "theirs").write_text("from the host")
    os.chown(shared / "theirs", 1000, 1001)
    (tmp_path / "file").write_text("one file")
    (tmp_path / "link").symlink_to(shared)
    points = [
        {"sourceVolume": "dir", "containerPath": "/dir"},
        {"sourceVolume": "file", "containerPath": "/etc/one file", "readOnly": True},
        {"sourceVolume": "new", "containerPath": "/new"},
    ]
    script = (
        "stat -c '%u %g' /dir /dir/theirs; cat /dir/theirs '/etc/one file'; echo;"
        " echo mine > /dir/mine; touch /new/there; echo x 2>/dev/null > '/etc/one file' || echo ro"
    )
    lines = look(
        settings, busybox, script, mountPoints=points,
        task_volumes=[
            {"name": "dir", "host": {"sourcePath": str(tmp_path / "link")}},
            {"name": "file", "host": {"sourcePath": str(tmp_path / "file")}},
            {"name": "new", "host": {"sourcePath": str(tmp_path / "made" / "for it")}},
        ],
    )  # fmt: skip
    assert lines == ["0 0", "1000 1001", "from the hostone file", "ro"]
    assert ((shared / "mine").stat().st_uid, (shared / "mine").read_text()) == (0, "mine\n")
    assert (tmp_path / "made" / "for it" / "there").exists()
    assert (tmp_path / "file").read_text() == "one file"


@pytest.mark.field("containerDefinitions[].hostname")
@pytest.mark.field("containerDefinitions[].extraHosts[].hostname")
@pytest.mark.field("containerDefinitions[].extraHosts[].ipAddress")
@pytest.mark.field("containerDefinitions[].dnsServers")
@pytest.mark.field("containerDefinitions[].dnsSearchDomains")
@pytest.mark.field("containerDefinitions[].links")
def test_names_of_a_containers_own(settings: Settings, busybox: str) -> None:
    script = "hostname; cat /etc/hostname; echo $HOSTNAME; cat /etc/hosts /etc/resolv.conf"
    task = start(
        settings,
        container(
            busybox, script, hostname="box", links=["other:db"],
            extraHosts=[{"hostname": "far.test", "ipAddress": "192.0.2.9"}],
            dnsServers=["192.0.2.53"], dnsSearchDomains=["corp.test"],
        ),
        container(busybox, "cat /etc/hosts; hostname", name="other", essential=False),
        container(busybox, "hostname", name="hosts", hostname="third", essential=False),
    )  # fmt: skip
    lines = lines_of(task)
    assert lines[:3] == ["box", "box", "box"]
    address = task.address
    assert f"{address} box" in lines
    assert f"{address} db other" in lines
    assert "192.0.2.9 far.test" in lines
    assert [line for line in lines if line.startswith("nameserver")] == ["nameserver 192.0.2.53"]
    assert "search corp.test" in lines
    others = [line.text.decode() for line in task.logs("other")]
    assert not any("far.test" in line for line in others)
    assert [line.text for line in task.logs("hosts")] == [b"third"]


@pytest.mark.field("networkMode")
def test_the_hosts_network(settings: Settings, busybox: str) -> None:
    port = free_port()
    with start(
        settings,
        container(busybox, f"hostname; httpd -f -p 127.0.0.1:{port} -h /etc"),
        networkMode="host",
    ) as task:
        task.until("RUNNING", TIMEOUT_S)
        for line in task.logs("c", follow=True):
            assert line.text.decode() == os.uname().nodename
            break
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)):
                assert task.last_status == "RUNNING"
        assert b"root" in urllib.request.urlopen(f"http://127.0.0.1:{port}/passwd").read()
        assert task.address is None
        assert task.describe()["attachments"] == []


@pytest.mark.field("networkMode")
def test_bridge_publishes_host_ports(settings: Settings, busybox: str) -> None:
    port = free_port()
    with start(
        settings,
        container(
            busybox, "echo up; httpd -f -p 8080 -h /etc",
            portMappings=[{"containerPort": 8080, "hostPort": port}],
        ),
        networkMode="bridge",
    ) as task:  # fmt: skip
        task.until("RUNNING", TIMEOUT_S)
        with socket.socket() as probe:
            probe.settimeout(5)
            while probe.connect_ex(("127.0.0.1", port)):
                assert task.last_status == "RUNNING"
        assert b"root" in urllib.request.urlopen(f"http://127.0.0.1:{port}/passwd").read()


@pytest.mark.field("networkMode")
def test_no_network(settings: Settings, busybox: str) -> None:
    lines = look(
        settings, busybox, "cat /proc/net/dev | tail -n +3 | cut -d: -f1; env | grep -c METADATA;"
        " ping -c1 -W1 127.0.0.1 >/dev/null && echo lo", task_networkMode="none",
    )  # fmt: skip
    assert [line.strip() for line in lines] == ["lo", "0", "lo"]


@pytest.mark.field("containerDefinitions[].disableNetworking")
def test_a_container_without_network(settings: Settings, busybox: str) -> None:
    task = start(
        settings,
        container(
            busybox, "tail -n +3 /proc/net/dev | cut -d: -f1; cat /proc/net/route | wc -l",
            disableNetworking=True,
        ),
        container(
            busybox, "tail -n +3 /proc/net/dev | cut -d: -f1", name="other", essential=False
        ),
    )  # fmt: skip
    assert [line.strip() for line in lines_of(task)] == ["lo", "0"]
    others = [line.text.decode().strip() for line in task.logs("other")]
    assert len(others) == 2


@pytest.mark.field("containerDefinitions[].linuxParameters.sharedMemorySize")
def test_shared_memory(settings: Settings, busybox: str) -> None:
    lines = look(
        settings, busybox, "grep ' /dev/shm ' /proc/mounts",
        linuxParameters={"sharedMemorySize": 7},
    )  # fmt: skip
    assert "size=7168k" in lines[0]


@pytest.mark.field("ipcMode")
@pytest.mark.field("pidMode")
def test_the_hosts_namespaces(settings: Settings, busybox: str) -> None:
    script = "for n in ipc pid net; do stat -c %N /proc/self/ns/$n; done; ls /dev/shm"
    name = f"fargatelite-{os.getpid()}"
    path = Path("/dev/shm", name)
    path.touch()
    try:
        lines = look(
            settings, busybox, script, task_ipcMode="host", task_pidMode="host",
        )  # fmt: skip
    finally:
        path.unlink()
    assert os.readlink("/proc/self/ns/ipc") in lines[0]
    assert os.readlink("/proc/self/ns/pid") in lines[1]
    assert os.readlink("/proc/self/ns/net") not in lines[2]
    assert name in lines


def test_an_ipc_namespace_of_its_own(settings: Settings, busybox: str) -> None:
    lines = look(settings, busybox, "stat -c %N /proc/self/ns/ipc", task_ipcMode="none")
    assert "ipc:[" in lines[0]
    assert os.readlink("/proc/self/ns/ipc") not in lines[0]


@pytest.mark.field("containerDefinitions[].linuxParameters.capabilities.add")
@pytest.mark.parametrize(
    ("add", "mask"), [(["NET_ADMIN"], 0xA80425FB | 1 << 12), (["ALL"], (1 << 41) - 1)]
)
def test_any_capability(settings: Settings, busybox: str, add: list[str], mask: int) -> None:
    lines = look(
        settings, busybox, "grep CapEff /proc/self/status; ip link set lo down && echo down",
        linuxParameters={"capabilities": {"add": add}},
    )  # fmt: skip
    assert int(lines[0].split()[1], 16) == mask
    assert lines[1] == "down"


@pytest.mark.field("containerDefinitions[].dockerSecurityOptions")
def test_no_new_privileges_and_no_filter(settings: Settings, busybox: str) -> None:
    script = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status"
    options = ["no-new-privileges"]
    lines = look(settings, busybox, script, dockerSecurityOptions=options)
    assert [line.split()[1] for line in lines] == ["1", "2"]
    options = ["seccomp:unconfined"]
    lines = look(
        settings, busybox, script, dockerSecurityOptions=options, task_allow_privileged=True
    )
    assert [line.split()[1] for line in lines] == ["0", "0"]


@pytest.mark.field("containerDefinitions[].privileged")
def test_privileged_is_root_of_the_task_and_not_of_the_host(
    settings: Settings, busybox: str
) -> None:
    script = (
        "grep -E 'CapEff|Seccomp:' /proc/self/status;"
        " echo h > /proc/sysrq-trigger || echo no sysrq; cat /proc/self/uid_map"
    )
    with pytest.raises(InvalidTaskDefinition, match="allow_privileged"):
        look(settings, busybox, script, privileged=True)
    lines = look(settings, busybox, script, privileged=True, task_allow_privileged=True)
    text = "\n".join(lines)
    assert "000001ffffffffff" in text
    assert "Seccomp:\t0" in text
    assert "no sysrq" in text
    assert lines[-1].split()[1] != "0"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"linuxParameters": {"devices": [{"hostPath": "/a"}]}}, "Invalid containerPath"),
        (
            {"linuxParameters": {"devices": [{"hostPath": "/dev/../etc/x"}]}},
            "Invalid containerPath",
        ),
        ({"linuxParameters": {"maxSwap": 5}}, "maxSwap is not supported"),
        ({"linuxParameters": {"swappiness": 5}}, "swappiness is not supported"),
        ({"dockerSecurityOptions": ["label:x"]}, "not supported yet"),
        ({"dockerSecurityOptions": ["seccomp:unconfined"]}, "allow_privileged"),
        ({"resourceRequirements": [{"type": "GPU", "value": "1"}]}, "RESOURCE:GPU"),
        ({"memory": None}, "At least one of 'memory' or 'memoryReservation'"),
        ({"links": ["nobody"]}, "unknown container"),
        ({"extraHosts": [{"hostname": "a", "ipAddress": "b\nc"}]}, "Invalid IP address"),
        ({"hostname": "a\nb"}, "Invalid hostname"),
    ],
)
def test_what_this_host_cannot_do(settings: Settings, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTaskDefinition, match=message):
        start(settings, container("x", "true", **more))


@pytest.mark.field(
    "containerDefinitions[].linuxParameters.devices[].hostPath",
    "containerDefinitions[].linuxParameters.devices[].containerPath",
    "containerDefinitions[].linuxParameters.devices[].permissions",
)
def test_devices_of_the_host(settings: Settings, busybox: str) -> None:
    """fuse: every process may open it that can see it, so that the rules alone decide."""
    if not os.path.exists("/dev/fuse"):
        subprocess.run(["modprobe", "fuse"], check=True, timeout=patient(20))
    info = os.stat("/dev/fuse")
    devices = [
        {"hostPath": "/dev/fuse", "containerPath": "/dev/deep/er", "permissions": ["read"]},
        {"hostPath": "/dev/kmsg"},
    ]
    script = (
        "stat -c '%F %t:%T %a' /dev/deep/er; head -c 0 /dev/deep/er && echo read;"
        " (: > /dev/deep/er) 2>&1 | grep -o 'Operation not permitted';"
        " stat -c %F /dev/kmsg; ls /dev/fuse 2>&1; true"
    )
    lines = look(settings, busybox, script, linuxParameters={"devices": devices})
    number = f"{os.major(info.st_rdev):x}:{os.minor(info.st_rdev):x}"
    assert lines[0] == f"character special file {number} {info.st_mode & 0o777:o}"
    assert lines[1:4] == ["read", "Operation not permitted", "character special file"]
    assert "No such file" in lines[4]


def test_a_device_that_is_not_there(settings: Settings, busybox: str) -> None:
    for path, words in (("/dev/nothing", "No such file"), ("/dev/shm", "it is no device")):
        task = start(
            settings,
            container(busybox, "true", linuxParameters={"devices": [{"hostPath": path}]}),
        )
        task.wait(TIMEOUT_S)
        assert words in (task.stopped_reason or "")


def test_host_sysctls_stay_the_hosts(settings: Settings) -> None:
    controls = [{"namespace": "net.core.somaxconn", "value": "1"}]
    with pytest.raises(InvalidTaskDefinition, match="are the host's when networkMode=host"):
        start(settings, container("x", "true", systemControls=controls), networkMode="host")
