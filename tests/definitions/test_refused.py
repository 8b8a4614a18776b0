"""What Fargate refuses, in its words and with the place in the file, and what the same definition
is with launch type EC2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fargatelite import InvalidTaskDefinition
from tests.fixtures.cli import CommandLine
from tests.fixtures.published import Published

pytestmark = [pytest.mark.root, pytest.mark.registry]

UNSUPPORTED = "Fargate compatible task definitions do not support"
SIZES = (
    ("cpu", "Fargate requires that 'cpu' be defined at the task level."),
    ("memory", "Fargate requires that 'memory' be defined at the task level."),
)
AWSVPC = ("networkMode", "Fargate only supports network mode ‘awsvpc’.")
FOR_EC2 = ("requiresCompatibilities", "Task definition does not support launch_type FARGATE.")
PRIVILEGED = (
    "containerDefinitions[0].privileged",
    "Fargate requires that the ‘privileged’ setting be ‘false’ at the container level.",
)
LINKS = ("containerDefinitions[0].links", "Links are not supported when networkMode=awsvpc.")

REFUSALS: dict[str, tuple[tuple[str, str], ...]] = {
    "windows": (
        (
            "runtimePlatform.operatingSystemFamily",
            "operatingSystemFamily is not supported on this host.",
        ),
    ),
    "gpu": (
        (
            "containerDefinitions[0].resourceRequirements",
            "Tasks using the Fargate launch type do not support GPU resource requirements.",
        ),
    ),
    "fargate-host-network": (AWSVPC,),
    "fargate-privileged": (PRIVILEGED,),
    "fargate-links": (LINKS,),
    "fargate-net-admin": (
        (
            "containerDefinitions[0].linuxParameters.capabilities.add[0]",
            "NET_ADMIN is not allowed on Fargate.",
        ),
    ),
    "fargate-many-mistakes": (
        (
            "memory",
            "No Fargate configuration exists for given values: 256 CPU, 4096 memory. See the "
            "Amazon ECS documentation for the valid values.",
        ),
        ("volumes[0].host.sourcePath", f"{UNSUPPORTED} sourcePath"),
        ("volumes[1].dockerVolumeConfiguration", f"{UNSUPPORTED} dockerVolumeConfiguration"),
        ("placementConstraints", f"{UNSUPPORTED} constraints"),
        ("ephemeralStorage.sizeInGiB", "EphemeralStorage size should be at least 21"),
        (
            "containerDefinitions[0].hostname",
            "hostname is not supported on container when networkMode=awsvpc.",
        ),
        (
            "containerDefinitions[0].portMappings[0].hostPort",
            "When networkMode=awsvpc, the host ports and container ports in port mappings must "
            "match.",
        ),
        ("containerDefinitions[0].mountPoints[0].sourceVolume", "Unknown volume 'nope'."),
        (
            "containerDefinitions[0].dependsOn[0].containerName",
            "Cannot depend on container + 'db' because it does not exist",
        ),
        (
            "containerDefinitions[0].logConfiguration.logDriver",
            "json-file is not a valid log driver. Must be one of [awslogs,splunk,awsfirelens]",
        ),
        (
            "containerDefinitions[0].linuxParameters.sharedMemorySize",
            f"{UNSUPPORTED} sharedMemorySize",
        ),
        (
            "containerDefinitions[0].stopTimeout",
            "Tasks using the Fargate launch type must have a container stop timeout of less than "
            "120 seconds.",
        ),
    ),
    "ec2-host-network": (
        *SIZES, AWSVPC, FOR_EC2,
        (
            "pidMode",
            "Tasks using the Fargate launch type do not support pidMode 'host'. The supported "
            "value for pidMode is 'task'.",
        ),
        ("volumes[0].host.sourcePath", f"{UNSUPPORTED} sourcePath"),
    ),
    "ec2-bridge-links": (
        *SIZES, AWSVPC, FOR_EC2, LINKS,
        (
            "containerDefinitions[1].hostname",
            "hostname is not supported on container when networkMode=awsvpc.",
        ),
    ),
    "ec2-devices": (
        AWSVPC, *SIZES, FOR_EC2,
        ("containerDefinitions[0].linuxParameters.devices", f"{UNSUPPORTED} devices"),
        (
            "containerDefinitions[0].linuxParameters.capabilities.add[0]",
            "SYS_ADMIN is not allowed on Fargate.",
        ),
        (
            "containerDefinitions[0].linuxParameters.sharedMemorySize",
            f"{UNSUPPORTED} sharedMemorySize",
        ),
    ),
    "ec2-privileged": (
        AWSVPC, *SIZES, FOR_EC2, PRIVILEGED,
        (
            "containerDefinitions[0].dockerSecurityOptions",
            f"{UNSUPPORTED} dockerSecurityOptions",
        ),
    ),
    "ec2-dns": (
        AWSVPC, *SIZES, FOR_EC2,
        (
            "containerDefinitions[0].dnsServers",
            "DNS servers are not supported on container when networkMode=awsvpc.",
        ),
        (
            "containerDefinitions[0].dnsSearchDomains",
            "DNS search domains are not supported on container when networkMode=awsvpc.",
        ),
        (
            "containerDefinitions[0].extraHosts",
            "Extra hosts are not supported on container when networkMode=awsvpc.",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_fargate_refuses(published: Published, name: str) -> None:
    with pytest.raises(InvalidTaskDefinition) as caught:
        published.start(name)
    problems = caught.value.problems
    assert [(problem.path, problem.message) for problem in problems] == [*REFUSALS[name]]
    assert all(problem.line for problem in problems)


@pytest.mark.field("runtimePlatform.cpuArchitecture")
def test_another_architecture(published: Published) -> None:
    """Refused before anything is pulled, unless the host has binfmt_misc for it."""
    ran = published.run("arm64")
    assert ran.task.stop_code == "TaskFailedToStart"
    assert "cannot run arm64 programs" in (ran.task.stopped_reason or ""), ran.why
    assert ran.output("api") == []


@pytest.mark.field("networkMode", "pidMode", "volumes[].host.sourcePath")
def test_host_network(published: Published) -> None:
    ran = published.run("ec2-host-network", launch_type="EC2")
    seen = ran.seen("node-exporter")
    for kind in ("net", "pid"):
        assert seen["namespaces"][kind] == os.readlink(f"/proc/self/ns/{kind}")
    assert seen["namespaces"]["mnt"] != os.readlink("/proc/self/ns/mnt")
    assert seen["hostname"] == os.uname().nodename
    assert "/host/proc/1/comm" in ran.lines("node-exporter"), ran.why
    assert "ro" in ran.mount("node-exporter", "/host/proc")["flags"]


@pytest.mark.field("containerDefinitions[].links", "containerDefinitions[].hostname")
def test_bridge_and_links(published: Published) -> None:
    ran = published.start("ec2-bridge-links", launch_type="EC2")
    ran.until_line("wordpress", "page of the app")
    assert ran.lines("wordpress")[0].split()[1:] == ["db", "mysql"]
    assert ran.seen("mysql")["hostname"] == "mysql"


@pytest.mark.field("volumes[].host.sourcePath")
def test_host_path(published: Published, tmp_path: Path) -> None:
    published.replacements["${HOST_DIRECTORY}"] = str(tmp_path)
    ran = published.run("ec2-host-path", launch_type="EC2")
    assert ran.codes == {"nginx": 0}, (ran.why, ran.output("nginx"))
    assert (tmp_path / "nginx" / "access.log").read_text() == "line\n"


@pytest.mark.field(
    "containerDefinitions[].linuxParameters.devices[].hostPath",
    "containerDefinitions[].linuxParameters.sharedMemorySize",
)
def test_devices_and_shared_memory(published: Published) -> None:
    ran = published.run("ec2-devices", launch_type="EC2")
    seen = ran.seen("rclone")
    number = os.stat("/dev/fuse").st_rdev
    assert seen["devices"]["fuse"] == f"c {os.major(number)}:{os.minor(number)}"
    assert int(seen["cap_effective"], 16) & 1 << 21
    assert "size=262144k" in ran.mount("rclone", "/dev/shm")["super"]


@pytest.mark.field(
    "containerDefinitions[].privileged", "containerDefinitions[].dockerSecurityOptions"
)
def test_privileged_when_it_is_allowed(published: Published) -> None:
    with pytest.raises(InvalidTaskDefinition, match="allow_privileged"):
        published.run("ec2-privileged", launch_type="EC2")
    ran = published.run("ec2-privileged", launch_type="EC2", allow_privileged=True)
    seen = ran.seen("dind")
    assert int(seen["cap_effective"], 16) == (1 << 41) - 1
    assert (seen["no_new_privs"], seen["seccomp"]) == ("1", "0")
    assert seen["uid_map"].split()[1] != "0", "all capabilities, in a user namespace of its own"


@pytest.mark.field(
    "containerDefinitions[].dnsServers",
    "containerDefinitions[].dnsSearchDomains",
    "containerDefinitions[].extraHosts[].hostname",
)
def test_names_of_a_company(published: Published) -> None:
    seen = published.run("ec2-dns", launch_type="EC2").seen("squid")
    assert "nameserver 10.0.0.2\n" in seen["resolv_conf"]
    assert "search corp.example.com\n" in seen["resolv_conf"]
    assert "10.0.0.9 ldap.corp.example.com\n" in seen["hosts"]


def test_all_mistakes_are_told_at_once(fargatelite: CommandLine, published: Published) -> None:
    """What a user sees: a line for each, with its place."""
    name = "fargate-many-mistakes"
    shown = fargatelite("run", f"tests/definitions/{name}.json")
    assert (shown.returncode, shown.stdout) == (125, "")
    for path, message in REFUSALS[name]:
        assert any(
            line.startswith(f"  {path} (line ") and line.endswith(message)
            for line in shown.stderr.splitlines()
        ), (path, shown.stderr)
