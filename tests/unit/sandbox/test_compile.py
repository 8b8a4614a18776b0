"""What a container's plan is made of; the golden file shows a security change as a diff."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from fargatelite.errors import SandboxFailed
from fargatelite.sandbox.capabilities import FARGATE_DEFAULT, container_mask
from fargatelite.sandbox.compile import (
    ContainerSpec,
    HostLimits,
    Process,
    compile_container,
    compile_health_check,
    compile_rlimits,
    resolve_process,
)
from fargatelite.sandbox.environment import DEFAULT_PATH, compose_environment, exec_candidates
from fargatelite.sandbox.plan import Plan, describe_op, encode_plan
from fargatelite.sandbox.rootfs import Directories
from fargatelite.sandbox.users import User

GOLDEN = Path(__file__).parents[2] / "golden"

SPEC = ContainerSpec(
    name="web",
    number=0,
    process=Process(
        argv=("nginx", "-g", "daemon off;"),
        environment={"PATH": "/usr/sbin:/usr/bin", "HOME": "/root"},
        user=User(uid=33, gid=33, groups=(4,), home="/var/www"),
        working_directory="/srv",
    ),
    directories=Directories(
        container="/data/tasks/1/web",
        image="/run/images/abc/fs",
        files={"/etc/hosts": "/run/tasks/1/files/hosts"},
        groups={"/sys/fs/cgroup/memory": "/sys/fs/cgroup/memory/fargatelite/1/web"},
    ),
    id_base=1879048192,
    hostname="ip-10-0-0-1.ec2.internal",
    log_path="/data/records/1/logs/web.log",
    join_files=("/sys/fs/cgroup/memory/fargatelite/1/web/tasks",),
    clone_into=None,
    seccomp=b"\0" * 16,
    capabilities=container_mask((), ()),
    rlimits=(("nofile", 65535, 65535), ("core", 0, -1)),
    readonly_root=True,
)


def _text(plan: Plan) -> str:
    return "".join(describe_op(item) + "\n" for item in plan)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("container", compile_container(SPEC)),
        ("health_check", compile_health_check(SPEC, ("CMD-SHELL", "curl -f localhost || exit 1"))),
    ],
)
def test_plan_is_as_reviewed(name: str, plan: Plan) -> None:
    path = GOLDEN / f"{name}.plan"
    if os.environ.get("FARGATELITE_REWRITE_GOLDEN"):
        path.write_text(_text(plan))
    assert _text(plan) == path.read_text(), "read the diff, then: make golden"
    encode_plan(plan)


def _position(plan: Plan, name: str) -> int:
    return next(index for index, item in enumerate(plan) if item.name == name)


def test_privileges_go_in_the_order_that_the_kernel_needs() -> None:
    plan = compile_container(SPEC)
    order = ["pivot_root", "rlimit", "user_namespace", "seccomp", "bounding", "user",
             "capabilities", "workdir", "exec"]  # fmt: skip
    positions = [_position(plan, name) for name in order]
    assert positions == sorted(positions)


def test_nothing_of_the_host_is_named_after_pivot_root() -> None:
    plan = compile_container(SPEC)
    after = "".join(describe_op(item) for item in plan[_position(plan, "pivot_root") :])
    assert "/data/" not in after
    assert "/run/images" not in after


@pytest.mark.parametrize("user", [User(uid=0, gid=0), User(uid=33, gid=33)], ids=["root", "user"])
def test_only_root_has_permitted_capabilities(user: User) -> None:
    process = msgspec.structs.replace(SPEC.process, user=user)
    plan = compile_container(msgspec.structs.replace(SPEC, process=process))
    permitted, inheritable, ambient = plan[_position(plan, "capabilities")].values
    assert permitted == (SPEC.capabilities if user.uid == 0 else 0)
    assert (inheritable, ambient) == (0, 0)


@pytest.mark.field(
    "containerDefinitions[].linuxParameters.capabilities.add",
    "containerDefinitions[].linuxParameters.capabilities.drop",
)
def test_fargates_capabilities() -> None:
    assert container_mask((), ()) == 0xA80425FB  # contract 4.2
    assert len(FARGATE_DEFAULT) == 14
    assert container_mask(("SYS_PTRACE",), ("ALL",)) == 1 << 19
    assert container_mask((), ("NET_RAW",)) == 0xA80425FB & ~(1 << 13)


def _resolve(**changes: object) -> Process:
    defaults: dict[str, object] = {
        "entry_point": None, "command": None,
        "image_entry_point": ("/entry",), "image_command": ("serve",),
        "user": None, "image_user": "", "working_directory": None,
        "image_working_directory": "", "passwd": b"", "group": b"",
        "image_environment": (), "injected": {}, "environment": (), "hostname": "h",
    }  # fmt: skip
    return resolve_process(**{**defaults, **changes})  # type: ignore[arg-type]


@pytest.mark.field("containerDefinitions[].entryPoint", "containerDefinitions[].command")
@pytest.mark.parametrize(
    ("entry_point", "command", "expected"),
    [
        (None, None, ("/entry", "serve")),
        (None, ("x",), ("/entry", "x")),
        (("/mine",), None, ("/mine",)),
        (("/mine",), ("x",), ("/mine", "x")),
    ],
    ids=["image", "command", "entry point drops the image's command", "both"],
)
def test_what_is_run(
    entry_point: tuple[str, ...] | None,
    command: tuple[str, ...] | None,
    expected: tuple[str, ...],
) -> None:
    assert _resolve(entry_point=entry_point, command=command).argv == expected


def test_nothing_to_run_is_said() -> None:
    with pytest.raises(SandboxFailed, match="no command specified"):
        _resolve(image_entry_point=None, image_command=None)


def test_relative_working_directory_is_refused() -> None:
    with pytest.raises(SandboxFailed, match="not absolute"):
        _resolve(working_directory="tmp")


@pytest.mark.field(
    "containerDefinitions[].environment[].name", "containerDefinitions[].environment[].value"
)
def test_environment_precedence() -> None:
    """Image < injected < files < definition (contract 4.7)."""
    variables = compose_environment(
        image=["PATH=/image", "A=image", "B=image", "C=image", "D=image"],
        injected={"B": "injected", "C": "injected", "AWS_REGION": "us-east-1"},
        files={"C": "file", "D": "file"},
        definition=[("D", "definition")],
        hostname="h",
        home="/root",
    )
    assert variables == {
        "PATH": "/image", "HOSTNAME": "h", "A": "image", "B": "injected",
        "AWS_REGION": "us-east-1", "C": "file", "D": "definition", "HOME": "/root",
    }  # fmt: skip


@pytest.mark.parametrize("of_user", ["definition", "file"])
def test_region_is_not_injected_over_the_users(of_user: str) -> None:
    variables = compose_environment(
        image=[],
        injected={"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"},
        files={"AWS_REGION": "eu-west-1"} if of_user == "file" else {},
        definition=[("AWS_REGION", "eu-west-1")] if of_user == "definition" else [],
        hostname="h",
        home="/",
    )
    assert variables["AWS_REGION"] == "eu-west-1"
    assert "AWS_DEFAULT_REGION" not in variables
    assert variables["PATH"] == DEFAULT_PATH


def test_candidates_as_execvp_has_them() -> None:
    assert exec_candidates("ls", "/a:/b", "/") == ("/a/ls", "/b/ls")
    assert exec_candidates("./ls", "/a", "/") == ("./ls",)
    assert exec_candidates("/bin/ls", "/a", "/") == ("/bin/ls",)


def test_default_nofile_is_cut_to_what_can_be_set() -> None:
    low = HostLimits(nofile_hard=20000, can_raise_limits=False)
    assert compile_rlimits((), low) == (("nofile", 20000, 20000),)
    assert compile_rlimits((("nofile", 70000, 70000),), low) == (("nofile", 70000, 70000),)
    high = HostLimits(nofile_hard=20000, can_raise_limits=True)
    assert compile_rlimits((), high) == (("nofile", 65535, 65535),)
