"""Hypothesis strategies: definitions that Fargate takes, and ways to spoil one."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from fargatelite.sandbox.capabilities import CAPABILITIES as KERNEL_CAPABILITIES
from fargatelite.taskdef.decode import members
from fargatelite.taskdef.fields import ContainerDefinition
from fargatelite.taskdef.markers import NotYet
from fargatelite.taskdef.rules_container import CAPABILITIES
from fargatelite.taskdef.sizes import SIZES

ROLE = "arn:aws:iam::000000000000:role/execution"
NAMES = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=12)
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
WORDS = st.lists(TEXT.filter(bool), min_size=1, max_size=3)
SEGMENTS = st.text(string.ascii_lowercase, min_size=1, max_size=6).filter(
    lambda text: text not in ("proc", "sys")
)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


def optional(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with any of these members."""
    return st.fixed_dictionaries({}, optional=members)


def is_supported(member: str) -> bool:
    """Other members join the generator by themselves, as soon as they are not refused."""
    return not isinstance(members(ContainerDefinition)[member].marker, NotYet)


VALUE_FROM = st.sampled_from(
    [
        "arn:aws:secretsmanager:us-east-1:000000000000:secret:db-AbCdEf",
        "arn:aws:secretsmanager:us-east-1:000000000000:secret:db-AbCdEf:user::",
        "arn:aws:ssm:us-east-1:000000000000:parameter/a/b",
        "/a/b",
        "plain",
    ]
)

PLAIN_MEMBERS: dict[str, st.SearchStrategy[Any]] = {
    "entryPoint": WORDS,
    "command": WORDS,
    "environment": st.lists(
        st.fixed_dictionaries({"name": NAMES.map(lambda name: f"E{name}"), "value": TEXT}),
        max_size=3, unique_by=lambda item: item["name"],
    ),
    "startTimeout": st.integers(2, 120),
    "stopTimeout": st.integers(2, 120),
    "versionConsistency": st.sampled_from(["enabled", "disabled"]),
    "user": st.sampled_from(["root", "1000", "1000:1000", "app:app"]),
    "workingDirectory": PATHS,
    "readonlyRootFilesystem": st.booleans(),
    "interactive": st.booleans(),
    "pseudoTerminal": st.booleans(),
    "dockerLabels": st.dictionaries(TEXT, TEXT, max_size=2),
    "memoryReservation": st.integers(6, 64),
    "ulimits": st.lists(
        st.builds(
            lambda name, low, more: {"name": name, "softLimit": low, "hardLimit": low + more},
            st.sampled_from(["nofile", "nproc", "core", "stack"]),
            st.integers(0, 500_000), st.integers(0, 500_000),
        ),
        max_size=2, unique_by=lambda item: item["name"],
    ),
    "healthCheck": st.fixed_dictionaries(
        {"command": st.sampled_from([["CMD-SHELL", "true"], ["CMD", "a", "b"], ["check"]])},
        optional={
            "interval": st.integers(5, 300), "timeout": st.integers(2, 60),
            "retries": st.integers(1, 10), "startPeriod": st.integers(0, 300),
        },
    ),
    "linuxParameters": optional(
        capabilities=optional(
            add=st.just(["SYS_PTRACE"]),
            drop=st.lists(st.sampled_from(sorted(CAPABILITIES)), max_size=3, unique=True),
        ),
        initProcessEnabled=st.booleans(),
    ),
    "restartPolicy": st.fixed_dictionaries(
        {"enabled": st.booleans()},
        optional={
            "ignoredExitCodes": st.lists(st.integers(0, 255), max_size=50),
            "restartAttemptPeriod": st.integers(60, 1800),
        },
    ),
    "systemControls": st.lists(
        st.fixed_dictionaries(
            {
                "namespace": st.sampled_from(
                    ["net.core.somaxconn", "kernel.msgmax", "fs.mqueue.msg_max"]
                ),
                "value": st.just("64"),
            }
        ),
        max_size=2,
    ),
    "environmentFiles": st.lists(
        st.just({"value": "arn:aws:s3:::bucket/a.env", "type": "s3"}), max_size=10
    ),
    "secrets": st.lists(
        st.fixed_dictionaries(
            {"name": NAMES.map(lambda name: f"S{name}"), "valueFrom": VALUE_FROM}
        ),
        max_size=2, unique_by=lambda item: item["name"],
    ),
    "repositoryCredentials": st.just(
        {"credentialsParameter": "arn:aws:secretsmanager:us-east-1:000000000000:secret:r-AbCdEf"}
    ),
    "logConfiguration": st.just(
        {
            "logDriver": "awslogs",
            "options": {
                "awslogs-group": "g", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "p",
            },
        }
    ),
}  # fmt: skip
assert set(KERNEL_CAPABILITIES) >= CAPABILITIES - {"ALL"}


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    """A definition that Fargate takes, as a person may write it."""
    cpu = draw(st.sampled_from(sorted(SIZES)))
    memory = draw(st.sampled_from(SIZES[cpu]))
    volumes = draw(st.lists(NAMES, max_size=2, unique=True))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    known = {name: value for name, value in PLAIN_MEMBERS.items() if is_supported(name)}
    containers: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        container = draw(optional(**known)) | {"name": name, "image": "registry.test/a:1"}
        if draw(st.booleans()):
            container["cpu"] = draw(st.integers(0, cpu // len(names)))
        if draw(st.booleans()):
            container["memory"] = draw(st.integers(64, memory))
        if index:
            container["essential"] = draw(st.booleans())
        if draw(st.booleans()):
            port = 1000 + index
            container["portMappings"] = [
                draw(st.sampled_from([
                    {"containerPort": port},
                    {"containerPort": port, "hostPort": port, "protocol": "udp"},
                    {"containerPortRange": f"{port}-{port + 9}", "name": f"p{index}"},
                ]))
            ]  # fmt: skip
        targets = draw(st.lists(PATHS, max_size=len(volumes), unique=True))
        if targets:
            container["mountPoints"] = [
                {"sourceVolume": volume, "containerPath": path, "readOnly": draw(st.booleans())}
                for volume, path in zip(volumes, targets, strict=False)
            ]
        if containers and draw(st.booleans()):
            target = draw(st.sampled_from(containers))
            conditions = ["START"]
            if not target.get("essential", True):
                conditions += ["SUCCESS", "COMPLETE"]
            if "healthCheck" in target:
                conditions.append("HEALTHY")
            container["dependsOn"] = [
                {"containerName": target["name"], "condition": draw(st.sampled_from(conditions))}
            ]
            container["volumesFrom"] = [{"sourceContainer": target["name"]}]
        containers.append(container)
    document = {
        "family": draw(NAMES),
        "networkMode": "awsvpc",
        "cpu": draw(st.sampled_from([str(cpu), f"{cpu / 1024} vCPU", f"{cpu / 1024:g}vcpu"])),
        "memory": draw(st.sampled_from([str(memory), f"{memory / 1024}GB"])),
        "executionRoleArn": ROLE,
        "containerDefinitions": containers,
        "volumes": [draw(st.sampled_from([{"name": name}, {"name": name, "host": {}}]))
                    for name in volumes],
    }  # fmt: skip
    return document | draw(
        optional(
            taskRoleArn=st.just(ROLE),
            requiresCompatibilities=st.sampled_from([["FARGATE"], ["EC2", "FARGATE"], []]),
            pidMode=st.just("task"),
            ephemeralStorage=st.fixed_dictionaries({"sizeInGiB": st.integers(21, 200)}),
            runtimePlatform=optional(
                cpuArchitecture=st.sampled_from(["X86_64", "ARM64"]),
                operatingSystemFamily=st.just("LINUX"),
            ),
            tags=st.lists(
                st.fixed_dictionaries({"key": NAMES, "value": st.just("a b/c")}), max_size=2
            ),
            proxyConfiguration=st.just({"containerName": names[0], "type": "APPMESH"}),
        )
    )


def _task(member: str, value: Any, path: str | None = None) -> tuple[str, Callable[..., str]]:
    def spoil(document: dict[str, Any]) -> str:
        document[member] = value
        return path or member

    return f"{member}={value!r}"[:60], spoil


def _container(member: str, value: Any, below: str = "") -> tuple[str, Callable[..., str]]:
    def spoil(document: dict[str, Any]) -> str:
        last = len(document["containerDefinitions"]) - 1
        document["containerDefinitions"][last][member] = value
        return f"containerDefinitions[{last}].{member}{below}"

    return f"{member}={value!r}"[:60], spoil


def _missing(member: str, path: str) -> tuple[str, Callable[..., str]]:
    def spoil(document: dict[str, Any]) -> str:
        del document[member]
        return path

    return f"no {member}", spoil


def _twice(document: dict[str, Any]) -> str:
    containers = document["containerDefinitions"]
    containers.append(dict(containers[0]))
    return f"containerDefinitions[{len(containers) - 1}].name"


LINUX = "linuxParameters"
HEALTH = {"command": ["CMD", "x"]}
MUTATIONS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    _missing("family", "family"),
    _missing("containerDefinitions", "containerDefinitions"),
    _missing("networkMode", "networkMode"),
    _missing("cpu", "cpu"),
    _missing("memory", "memory"),
    _task("family", "a b"),
    _task("family", "x" * 256),
    _task("unknown", 1),
    _task("networkMode", "bridge"),
    _task("networkMode", 5),
    _task("cpu", "255"),
    _task("cpu", "0.3 vCPU"),
    _task("memory", "511"),
    _task("memory", "x"),
    _task("pidMode", "host"),
    _task("pidMode", "none"),
    _task("ipcMode", "task"),
    _task("requiresCompatibilities", ["EC2"]),
    _task("requiresCompatibilities", ["FARGATE", "X"], "requiresCompatibilities[1]"),
    _task("ephemeralStorage", {"sizeInGiB": 20}, "ephemeralStorage.sizeInGiB"),
    _task("ephemeralStorage", {"sizeInGiB": 201}, "ephemeralStorage.sizeInGiB"),
    _task("ephemeralStorage", {}, "ephemeralStorage.sizeInGiB"),
    _task("runtimePlatform", {"cpuArchitecture": "MIPS"}, "runtimePlatform.cpuArchitecture"),
    _task("runtimePlatform", {"operatingSystemFamily": "WINDOWS_SERVER_2022_CORE"},
          "runtimePlatform.operatingSystemFamily"),
    _task("tags", [{"key": ""}], "tags[0].key"),
    _task("tags", [{"key": "a", "value": "x" * 257}], "tags[0].value"),
    _task("tags", [{"key": "a"}] * 51),
    _task("placementConstraints", [{"type": "memberOf"}]),
    _task("inferenceAccelerators", [{"deviceName": "a", "deviceType": "b"}]),
    _task("trustedExecutionConfiguration", {"isolationMode": "SHARED"}),
    _task("proxyConfiguration", {"containerName": "!"}, "proxyConfiguration.containerName"),
    _task("volumes", [{"name": "a"}, {"name": "a"}], "volumes[1].name"),
    _task("volumes", [{"name": ""}], "volumes[0].name"),
    _task("volumes", [{"name": "a", "host": {"sourcePath": "/"}}], "volumes[0].host.sourcePath"),
    _task("volumes", [{"name": "a", "configuredAtLaunch": True}], "volumes[0].configuredAtLaunch"),
    _task("containerDefinitions", []),
    _task("containerDefinitions", {}),
    ("two containers of a name", _twice),
    _container("name", ""),
    _container("name", "a/b"),
    _container("image", ""),
    _container("image", "x" * 256),
    _container("cpu", -1),
    _container("cpu", "1"),
    _container("cpu", True),
    _container("memory", 5),
    _container("memory", 10**6),
    _container("memory", 2**40),
    _container("memoryReservation", 3),
    _container("stopTimeout", 1),
    _container("stopTimeout", 121),
    _container("startTimeout", 121),
    _container("user", "a\0b"),
    _container("command", "x"),
    _container("command", ["x", 1], "[1]"),
    _container("dockerLabels", {"a": 1}, ".a"),
    _container("versionConsistency", "maybe"),
    _container("environment", [{"name": "", "value": "x"}], "[0].name"),
    _container("environment", [{"name": "A=B"}], "[0].name"),
    _container("portMappings", [{"containerPort": 0}], "[0].containerPort"),
    _container("portMappings", [{"containerPort": 80, "hostPort": 81}], "[0].hostPort"),
    _container("portMappings", [{"containerPortRange": "9-8"}], "[0].containerPortRange"),
    _container("portMappings", [{"containerPort": 1, "containerPortRange": "8-9"}], "[0]"),
    _container("portMappings", [{"containerPort": 1, "appProtocol": "x"}], "[0].appProtocol"),
    _container("ulimits", [{"name": "nofile", "softLimit": 2, "hardLimit": 1}], "[0].softLimit"),
    _container("ulimits", [{"name": "nofile", "softLimit": 2, "hardLimit": 2**21}],
               "[0].hardLimit"),
    _container("ulimits", [{"name": "x", "softLimit": 1, "hardLimit": 1}], "[0].name"),
    _container("ulimits", [{"name": "core", "softLimit": 1}], "[0].hardLimit"),
    _container("healthCheck", {}, ".command"),
    _container("healthCheck", {"command": ["CMD"]}, ".command"),
    *(
        _container("healthCheck", {**HEALTH, member: value}, f".{member}")
        for member, values in {"interval": (4, 301), "timeout": (1, 61), "retries": (0, 11),
                               "startPeriod": (-1, 301)}.items()
        for value in values
    ),
    _container("dependsOn", [{"containerName": "!", "condition": "START"}], "[0].containerName"),
    _container("dependsOn", [{"containerName": "!", "condition": "SOON"}], "[0].condition"),
    _container("mountPoints", [{"sourceVolume": "!", "containerPath": "/a"}], "[0].sourceVolume"),
    _container("volumesFrom", [{"sourceContainer": "!"}], "[0].sourceContainer"),
    _container("restartPolicy", {"enabled": True, "restartAttemptPeriod": 59},
               ".restartAttemptPeriod"),
    _container("restartPolicy", {"restartAttemptPeriod": 60}, ".enabled"),
    _container("restartPolicy", {"enabled": True, "ignoredExitCodes": [1] * 51},
               ".ignoredExitCodes"),
    _container("systemControls", [{"namespace": "vm.swappiness", "value": "1"}], "[0].namespace"),
    _container("systemControls", [{"namespace": "net.a/../b", "value": "1"}], "[0].namespace"),
    _container(LINUX, {"capabilities": {"add": ["SETGID"]}}, ".capabilities.add[0]"),
    _container(LINUX, {"capabilities": {"drop": ["X"]}}, ".capabilities.drop[0]"),
    _container(LINUX, {"sharedMemorySize": 1}, ".sharedMemorySize"),
    _container(LINUX, {"maxSwap": 1}, ".maxSwap"),
    _container(LINUX, {"swappiness": 1}, ".swappiness"),
    _container(LINUX, {"devices": [{"hostPath": "/dev/x"}]}, ".devices"),
    _container(LINUX, {"tmpfs": [{"containerPath": "/proc/x", "size": 1}]},
               ".tmpfs[0].containerPath"),
    _container(LINUX, {"tmpfs": [{"containerPath": "/a", "size": 0}]}, ".tmpfs[0].size"),
    _container(LINUX, {"tmpfs": [{"containerPath": "/a", "size": 1, "mountOptions": ["x"]}]},
               ".tmpfs[0].mountOptions[0]"),
    _container("privileged", True),
    _container("links", ["a"]),
    _container("hostname", "a"),
    _container("disableNetworking", True),
    _container("dnsServers", ["192.0.2.1"]),
    _container("dnsSearchDomains", ["a"]),
    _container("extraHosts", [{"hostname": "a", "ipAddress": "b"}]),
    _container("dockerSecurityOptions", ["a"]),
    _container("resourceRequirements", [{"type": "GPU", "value": "1"}]),
    _container("credentialSpecs", ["a"]),
]  # fmt: skip
