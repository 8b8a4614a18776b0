"""What a container is allowed: users, capabilities, limits, namespaces."""

from __future__ import annotations

import os

import pytest

from fargatelite.host import Host
from tests.definitions.test_web import fetch
from tests.fixtures.published import Published

pytestmark = [pytest.mark.root, pytest.mark.registry]

DOCKER_DEFAULT = 0xA80425FB
CHOWN, NET_RAW, SYS_PTRACE, MKNOD = 1 << 0, 1 << 13, 1 << 19, 1 << 27


def nofile_default() -> int:
    """Fargate's, where the host may give it; `fargatelite check` says when not."""
    host = Host.probe()
    return 65535 if host.can_raise_limits else min(65535, host.nofile_hard)


def mask(text: str) -> int:
    return int(text, 16)


@pytest.mark.field("containerDefinitions[].name", "networkMode", "requiresCompatibilities")
def test_what_nobody_asked_for(published: Published) -> None:
    """A definition of one name and one image: Fargate's defaults, all at once."""
    ran = published.run("defaults")
    seen = ran.seen("app")
    assert ran.codes == {"app": 0}
    assert (seen["pid"], seen["ppid"], seen["uid"], seen["gid"]) == (1, 0, 0, 0)
    assert (seen["cwd"], seen["arguments"]) == ("/", [])
    assert seen["processes"] == {"1": "probe"}
    for kind in ("cap_permitted", "cap_effective", "cap_bounding"):
        assert mask(seen[kind]) == DOCKER_DEFAULT
    assert mask(seen["cap_inheritable"]) == mask(seen["cap_ambient"]) == 0
    assert (seen["no_new_privs"], seen["seccomp"]) == ("0", "2")
    assert seen["limits"]["nofile"] == [nofile_default()] * 2
    for kind, name in seen["namespaces"].items():
        assert name != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert seen["uid_map"].split()[1] != "0", "root of the task is nobody of the host"
    assert sorted(seen["devices"]) == ["full", "null", "random", "tty", "urandom", "zero"]
    assert sorted(seen["fds"]) == ["0", "1", "2"], "nothing of the host stays open"
    assert seen["fds"]["0"] == "/dev/null"
    assert seen["ttys"] == [0, 0, 0]
    assert 15 * 2**30 < seen["disk_bytes"] < 21 * 2**30
    assert sorted(seen["environment"]) == [
        "AWS_DEFAULT_REGION", "AWS_EXECUTION_ENV", "AWS_REGION", "ECS_AGENT_URI",
        "ECS_CONTAINER_METADATA_URI", "ECS_CONTAINER_METADATA_URI_V4", "HOME", "HOSTNAME", "PATH",
    ]  # fmt: skip
    assert seen["hosts"].startswith("127.0.0.1 localhost\n")
    assert seen["hosts"].splitlines()[-1] == f"{ran.task.address} {seen['hostname']}"
    assert "nameserver " in seen["resolv_conf"]
    assert ran.mount("app", "/proc")["type"] == "proc"
    assert {"ro", "nosuid", "nodev", "noexec"} <= ran.mount("app", "/sys")["flags"]
    assert "size=65536k" in ran.mount("app", "/dev/shm")["super"]
    assert "/proc" not in seen["writable"]
    assert "/sys" not in seen["writable"]


@pytest.mark.field("containerDefinitions[].user")
def test_users(published: Published) -> None:
    ran = published.run("non-root-user")
    ids = {
        name: (ran.seen(name)["uid"], ran.seen(name)["gid"], sorted(ran.seen(name)["groups"]))
        for name in ran.codes
    }
    assert ids == {
        "analytics": (10001, 10002, []),
        "named": (1000, 1001, [50]),
        "group": (1000, 50, []),
        "of-image": (1000, 1001, [50]),
    }
    for name in ran.codes:
        seen = ran.seen(name)
        assert mask(seen["cap_effective"]) == mask(seen["cap_permitted"]) == 0
        assert mask(seen["cap_bounding"]) == DOCKER_DEFAULT


def test_a_user_that_the_image_has_not(published: Published) -> None:
    ran = published.run("unknown-user")
    assert ran.task.stop_code == "TaskFailedToStart"
    assert "nobody-here" in (ran.task.containers["analytics"].reason or ""), ran.why


@pytest.mark.field("containerDefinitions[].systemControls")
def test_port_80_without_root(published: Published) -> None:
    ran = published.start("port-80-as-non-root")
    ran.until_line("node", '{"pid":')
    assert fetch(ran) == "page of the app\n"
    assert ran.seen("node")["uid"] == 1000


@pytest.mark.field("containerDefinitions[].linuxParameters.capabilities.drop")
def test_dropped_capabilities(published: Published) -> None:
    ran = published.run("drop-capabilities")
    assert mask(ran.seen("score")["cap_bounding"]) == 0
    assert mask(ran.seen("score")["cap_effective"]) == 0
    wanted = DOCKER_DEFAULT & ~(CHOWN | MKNOD | NET_RAW)
    assert mask(ran.seen("ping")["cap_effective"]) == wanted
    assert "no chown" in ran.lines("ping")


@pytest.mark.field("pidMode", "containerDefinitions[].linuxParameters.capabilities.add")
def test_a_debugger_beside_its_process(published: Published) -> None:
    ran = published.run("debug-sidecar")
    assert ran.codes["service"] == 0, ran.why
    service, debugger = ran.seen("service"), ran.seen("debugger")
    assert service["namespaces"]["pid"] == debugger["namespaces"]["pid"]
    assert service["namespaces"]["mnt"] != debugger["namespaces"]["mnt"]
    assert mask(debugger["cap_effective"]) == DOCKER_DEFAULT | SYS_PTRACE
    assert mask(service["cap_effective"]) == DOCKER_DEFAULT
    assert ran.lines("debugger") == ["GOTRACEBACK=crash"]


@pytest.mark.field("containerDefinitions[].linuxParameters.initProcessEnabled")
def test_init_reaps(published: Published) -> None:
    ran = published.run("init-process")
    assert ran.seen("chrome")["pid"] == 2
    assert ran.lines("chrome") == ["0", "init"], ran.why


@pytest.mark.field(
    "containerDefinitions[].ulimits[].name",
    "containerDefinitions[].ulimits[].softLimit",
    "containerDefinitions[].ulimits[].hardLimit",
)
def test_ulimits(published: Published) -> None:
    ran = published.run("ulimits")
    host = Host.probe()
    if not host.can_raise_limits and host.nofile_hard < 1048576:
        reason = ran.task.containers["es"].reason or ""
        assert "ulimit nofile 65536:1048576 is more than this host may give" in reason
        return
    limits = ran.seen("es")["limits"]
    assert limits["nofile"] == [65536, 1048576]
    assert limits["memlock"] == [-1, -1]
    assert limits["nproc"] == [4096, 4096]
    assert limits["core"] == [0, 0]


@pytest.mark.field(
    "containerDefinitions[].systemControls[].namespace",
    "containerDefinitions[].systemControls[].value",
)
def test_system_controls(published: Published) -> None:
    assert published.run("system-controls").lines("haproxy") == ["4096", "200", "1073741824"]


def test_a_static_binary_alone(published: Published) -> None:
    """No shell, no /etc/passwd, no directories: what is needed is made around it."""
    ran = published.run("static-binary")
    seen = ran.seen("tiny")
    assert (ran.codes, seen["uid"], seen["gid"]) == ({"tiny": 0}, 65532, 0), ran.why
    assert "nameserver " in seen["resolv_conf"]
    assert "localhost" in seen["hosts"]
    assert seen["writable"] == []
