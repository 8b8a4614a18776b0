"""The runtime itself as a target: the moment of an exec, the shim, paths of images, copies."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.cli.main import main
from fargatelite.errors import InvalidTaskDefinition
from fargatelite.images import store
from fargatelite.names import parse_task_id
from fargatelite.rundir import RunDirectory
from fargatelite.runtime import work
from fargatelite.runtime.guest import GUEST_NUMBER
from fargatelite.runtime.images import open_store
from fargatelite.runtime.record import read_record
from fargatelite.runtime.request import PullPolicy
from fargatelite.sandbox.compile import ContainerSpec, compile_guest, complete_guest
from fargatelite.sandbox.plan import Op, Plan, decode_plan, encode_plan
from fargatelite.shim import (
    _MAGIC,
    _PROGRAM,
    _REQUEST,
    _STATUS,
    _VERSION,
    ProcessExited,
    ProcessFailed,
    ProcessStarted,
    Refused,
    Shim,
)
from tests.attacks.conftest import (
    TIMEOUT_S,
    Weakness,
    before_the_root,
    container,
    edit_plans,
    execute,
    run_cli,
    task_of,
    text_of,
    until_line,
    weaken_shim,
)
from tests.fixtures.images import (
    RunningRegistry,
    build_oci_layout,
    busybox_files,
    directory,
    link,
    tar_layer,
)

pytestmark = [pytest.mark.root, pytest.mark.registry]


RUN_DIRECTORY_FD = 5
"""Where a shim has its run directory: RUN_FD of csrc/shim/shim.h."""


def shim_of(settings: Settings, task: Task) -> int:
    """The shim's process: the parent of a container's first."""
    record = read_record(settings, task.id)
    assert record is not None
    pid = record.state.containers[0].pid
    assert pid is not None
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


def as_nobody(program: str, *arguments: str) -> str:
    """Output of a Python program as another user of the host."""
    drop = "import os; os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)\n"
    return subprocess.run(
        [sys.executable, "-I", "-c", drop + program, *arguments],
        capture_output=True, text=True, check=False, cwd="/",
    ).stdout  # fmt: skip


def test_cve_2016_9962_the_moment_of_an_exec(ground: Settings, attack_image: str) -> None:
    """CVE-2016-9962, CVE-2019-5736: a process that joins the container is looked at, over and over,
    before it is our program: what it runs from, what it has open, its memory. It is not dumpable
    from its first instruction on (PR_SET_DUMPABLE of the shim, inherited)."""
    seen = watched_execs(ground, attack_image)
    assert len(seen) == 1, f"something could be read: {seen}"


def test_cve_2016_9962_the_moment_of_an_exec_of_a_dumpable_process(
    ground: Settings, attack_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other half: a runtime that makes itself dumpable, as runc did to read its own /proc, and
    is a moment late with execve."""
    weaken_shim(
        monkeypatch, tmp_path,
        ("exec.c", "prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)",
         "prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) || poll(0, 0, 200)"),
        ("exec.c", "#include <errno.h>", "#include <errno.h>\n#include <poll.h>"),
    )  # fmt: skip
    seen = watched_execs(ground, attack_image)
    assert any("exe " in line and "weakened-shim" in line for line in seen), seen
    assert any("descriptor" in line for line in seen), seen


def watched_execs(ground: Settings, attack_image: str) -> list[str]:
    """What a container could see of six processes that joined it, and how many those were."""
    script = "attack watch 6; echo End; while :; do sleep 0.2; done"
    with run_task(
        task_of(
            container(
                attack_image, "sh", "-c", script,
                linuxParameters={"capabilities": {"add": ["SYS_PTRACE"]}},
                healthCheck={"command": ["CMD", "true"], "interval": 5, "timeout": 4},
            )
        ),
        settings=ground,
    ) as task:  # fmt: skip
        task.until("RUNNING", TIMEOUT_S)
        for _ in range(6):
            execute(ground, task, "true")
        return until_line(task, "saw")


def test_cve_2019_5736_program_of_the_shim(ground: Settings, hostile_task: Task) -> None:
    """CVE-2019-5736: the shim runs from a sealed copy in memory; its file is as it was."""
    before = hashlib.sha256(_PROGRAM.read_bytes()).hexdigest()
    pid = shim_of(ground, hostile_task)
    assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:")
    with open(f"/proc/{pid}/exe", "rb") as running:
        seals = fcntl.fcntl(running, fcntl.F_GET_SEALS)
        assert hashlib.sha256(running.read()).hexdigest() == before
    for seal in (fcntl.F_SEAL_WRITE, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_SEAL):
        assert seals & seal
    with pytest.raises(OSError) as caught:
        open(f"/proc/{pid}/exe", "r+b")  # noqa: SIM115 - it cannot be opened
    assert caught.value.errno in {26, 1, 13}  # ETXTBSY, EPERM, EACCES
    # The write that CVE-2019-5736 waits for, when the program has ended: seals alone refuse it.
    program = _PROGRAM.read_bytes()
    for sealed in (True, False):
        copy = os.memfd_create("copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(copy, "r+b", buffering=0) as written:
            written.write(program)
            if sealed:
                fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
            subprocess.run([f"/proc/self/fd/{copy}"], pass_fds=[copy], capture_output=True)
            again = os.open(f"/proc/self/fd/{copy}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                if sealed:
                    with pytest.raises(PermissionError):
                        os.write(again, b"owned")
                else:
                    assert os.write(again, b"owned") == 5
            finally:
                os.close(again)


@contextmanager
def process_of_nobody() -> Iterator[int]:
    """One of that other user's own, which is dumpable."""
    with subprocess.Popen(
        ["sleep", "300"], user=65534, group=65534, extra_groups=[], cwd="/"
    ) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["mem", "environ", "maps", "fd", "root", "cwd", "exe"])
def test_another_user_cannot_look_into_the_shim(
    ground: Settings, hostile_task: Task, name: str
) -> None:
    """ptrace(2)'s access check: another user, and not dumpable."""
    program = (
        "import os, sys\n"
        "try:\n"
        "    os.listdir(sys.argv[1]) if sys.argv[1].endswith('fd') else "
        "os.readlink(sys.argv[1]) if sys.argv[1][-3:] in ('oot', 'cwd', 'exe') else "
        "open(sys.argv[1], 'rb').read(1)\n"
        "    print('OK')\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    assert as_nobody(program, f"/proc/{shim_of(ground, hostile_task)}/{name}") in {"13\n", "1\n"}
    with process_of_nobody() as pid:  # without either: nothing is read at address 0 of `mem`
        assert as_nobody(program, f"/proc/{pid}/{name}") == ("5\n" if name == "mem" else "OK\n")


def test_another_user_cannot_signal_the_shim(ground: Settings, hostile_task: Task) -> None:
    """kill(2) from a user whose ids a task could have: a process of that user's own gets it."""
    program = (
        "import os, sys\ntry: os.kill(int(sys.argv[1]), 0)\nexcept OSError as e: print(e.errno)"
    )
    assert as_nobody(program, str(shim_of(ground, hostile_task))) == "1\n"
    with process_of_nobody() as pid:
        assert as_nobody(program, str(pid)) == ""


CONNECT = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(10)
try:
    s.connect(sys.argv[1])
    s.send(bytes.fromhex(sys.argv[2]))
    print('closed' if s.recv(1) == b'' else 'OK')
except (ConnectionResetError, BrokenPipeError):
    print('closed')
except OSError as error:
    print(error.errno)
"""


def test_cve_2020_15257_socket_of_the_shim(
    attack_image: str, tmp_path_factory: pytest.TempPathFactory, clean_host: None
) -> None:
    """CVE-2020-15257: another user cannot reach the shim's socket, and where somebody opened all
    directories up is turned away by SO_PEERCRED."""
    assert answer_of_shim(attack_image, tmp_path_factory.mktemp("open")) == "closed\n"
    with pytest.MonkeyPatch.context() as patch:
        weaken_shim(
            patch, tmp_path_factory.mktemp("weak"), ("control.c", "peer.uid != geteuid()", "0")
        )
        # It answers: with what lives in the task, and with descriptors of its namespaces.
        assert answer_of_shim(attack_image, tmp_path_factory.mktemp("open")) == "OK\n"


def answer_of_shim(attack_image: str, base: Path) -> str:
    """What another user hears at the shim's socket once somebody has opened all directories up."""
    settings = Settings(data_root=str(base / "d"), run_root=str(base / "r"))
    with run_task(task_of(container(attack_image, "sleep", "300")), settings=settings) as task:
        task.until("RUNNING", TIMEOUT_S)
        (path,) = Path(settings.run_root).rglob("shim.sock")
        request = _REQUEST.pack(_MAGIC, _VERSION, _STATUS, 0, 0).hex()
        assert as_nobody(CONNECT, str(path), request) == "13\n"
        opened = [path, *path.parents[: len(path.parents) - 2]]
        modes = {item: stat.S_IMODE(item.stat().st_mode) for item in opened}
        try:
            for item in opened:
                item.chmod(0o777)
            return as_nobody(CONNECT, str(path), request)
        finally:
            for item, mode in modes.items():
                item.chmod(mode)


@pytest.mark.parametrize("kind", ["data_root", "run_root"])
def test_cve_2021_41091_state_is_ours_alone(
    hostile_task: Task, ground: Settings, kind: str
) -> None:
    """CVE-2021-41091, CVE-2021-41103, CVE-2024-25621: setuid programs of images could be run, and
    state be read, by any user of the host."""
    root = Path(getattr(ground, kind))
    assert hostile_task.id
    assert stat.S_IMODE(root.stat().st_mode) & 0o077 == 0
    # What is above is pytest's and closed as well: here only the root's own mode decides.
    look = (
        "import os, sys\ntry: print(len(os.listdir(sys.argv[1])) > 0)\n"
        "except OSError as e: print(e.errno)"
    )
    with tempfile.TemporaryDirectory(dir="/") as name:
        Path(name).chmod(0o755)
        seen = Path(name, "root")
        seen.mkdir()
        subprocess.run(["mount", "--bind", root, seen], check=True)
        try:
            assert as_nobody(look, str(seen)) == "13\n"
            root.chmod(0o755)
            try:
                assert as_nobody(look, str(seen)) == "True\n"
            finally:
                root.chmod(0o700)
        finally:
            subprocess.run(["umount", seen], check=True)


@pytest.mark.parametrize("place", ["/proc/self/fd/3", "/proc/self/fd/7", "/way", "/way/deeper"])
def test_cve_2024_21626_working_directory(
    ground: Settings, registry: RunningRegistry, attack_program: bytes,
    tmp_path_factory: pytest.TempPathFactory, place: str,
) -> None:  # fmt: skip
    """CVE-2024-21626: WORKDIR of a leaked descriptor of a host's directory, also behind a link:
    refused, or it is a directory of the container's own root."""
    files = busybox_files() | {"way": link("way", "/proc/self/fd/8")}
    path = tmp_path_factory.mktemp("way") / "layout"
    image = registry.push(build_oci_layout(path, [tar_layer(files)]), "way")
    task = run_task(
        task_of(container(image, "sh", "-c", "cat ../../../etc/shadow", workingDirectory=place)),
        settings=ground,
    )
    task.wait(TIMEOUT_S)
    assert task.exit_code is None
    reason = task.containers["app"].reason or ""
    assert "CannotStartContainerError" in reason, reason
    assert place.split("/")[1] in reason, reason


def test_cve_2024_21626_working_directory_of_the_host(
    ground: Settings, attack_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other half: links of /proc are followed, nobody looks where that led to, and the
    container's root is the host's: its working directory is the run directory of the task."""
    weaken_shim(
        monkeypatch, tmp_path,
        ("ops.c", "syscall(SYS_getcwd, where, sizeof where) < 0", "0"),
        ("ops.c", "return where[0] == '/' ? 0 :", "where[0] = '/';\n    return 1 ? 0 :"),
    )  # fmt: skip

    def follow(plan: Plan) -> Plan:
        return tuple(
            Op(item.name, (*item.values[:4], 0)) if item.name == "mkdir" else item
            for item in plan
            if item.name != "user_namespace"
        )

    edit_plans(monkeypatch, follow)
    task = run_task(
        task_of(
            container(attack_image, "ls", workingDirectory=f"/proc/self/fd/{RUN_DIRECTORY_FD}")
        ),
        settings=ground,
    )
    task.wait(TIMEOUT_S)
    assert "shim.sock" in text_of(task).split(), task.containers["app"].reason


@pytest.mark.parametrize("target", ["/canary", "../../../../canary", "/proc/self/root/canary"])
@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc", "dev/pts", "dev/null"])
def test_cve_2026_41579_system_directories_as_links(
    ground: Settings, registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory,
    name: str, target: str, tmp_path: Path,
) -> None:  # fmt: skip
    """CVE-2026-41579, CVE-2025-31133, CVE-2019-19921, CVE-2023-27561: what a runtime mounts over is
    a link of the image, to a place that exists on the host. It is refused or stays inside."""
    canary = Path("/canary")
    canary.mkdir()
    try:
        (canary / "ptmx").write_text("host")
        files = busybox_files()
        if name == "etc":
            files = {path: value for path, value in files.items() if not path.startswith("etc/")}
        if "/" in name:
            files["dev"] = directory("dev")
        files[name] = link(name, target)
        path = tmp_path_factory.mktemp("links") / "layout"
        image = registry.push(build_oci_layout(path, [tar_layer(files)]), "links")
        task = run_task(
            task_of(container(image, "sh", "-c", "ls -d /canary/ptmx; mount | grep -c canary")),
            settings=ground,
        )
        task.wait(TIMEOUT_S)
        if task.exit_code is None:
            assert "CannotStartContainerError" in (task.containers["app"].reason or "")
        else:
            assert "/canary/ptmx\n" not in text_of(task)
        assert [(item.name, item.read_text()) for item in canary.iterdir()] == [("ptmx", "host")]
    finally:
        (canary / "ptmx").unlink(missing_ok=True)
        canary.rmdir()


def test_cve_2026_41579_links_before_the_root_is_changed(
    ground: Settings, registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The other half: by path and before pivot_root, the same link has us write on the host."""
    canary = Path("/canary")
    canary.mkdir()
    try:
        files = {path: held for path, held in busybox_files().items() if path[:4] != "etc/"}
        files["etc"] = link("etc", "/canary")
        path = tmp_path_factory.mktemp("links") / "layout"
        image = registry.push(build_oci_layout(path, [tar_layer(files)]), "links")
        edit_plans(monkeypatch, before_the_root)
        run_task(task_of(container(image, "true")), settings=ground).wait(TIMEOUT_S)
        assert "hosts" in {item.name for item in canary.iterdir()}
    finally:
        shutil.rmtree(canary)


@pytest.mark.parametrize(
    "user",
    ["2147483648", "4294967295", "4294967296", "-1", "00x", "0x0", "65536", "65535:65536", "99:-1"],
)
def test_cve_2024_40635_users_beyond_the_namespace(
    ground: Settings, registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory, user: str
) -> None:
    """CVE-2024-40635, CVE-2026-46680: a number beyond 31 or 32 bits became root, or the entry of
    that name in /etc/passwd did."""
    passwd = f"root:x:0:0::/:/bin/sh\n{user}:x:0:0::/:/bin/sh\n".encode()
    files = busybox_files() | {"etc/passwd": passwd}
    path = tmp_path_factory.mktemp("users") / "layout"
    image = registry.push(build_oci_layout(path, [tar_layer(files)], {"User": user}), "users")
    task = run_task(task_of(container(image, "id", "-u")), settings=ground)
    task.wait(TIMEOUT_S)
    assert task.exit_code is None, text_of(task)
    assert user.split(":")[0] in (task.containers["app"].reason or "")
    # The highest that is within: it is the number that decides, not the image.
    allowed = run_task(task_of(container(image, "id", "-u", user="65534")), settings=ground)
    assert allowed.wait(TIMEOUT_S) == 0, allowed.containers["app"].reason
    assert text_of(allowed).splitlines()[-1] == "65534"


@pytest.mark.parametrize(
    ("number", "then"), [(1 << 32, "0"), ((1 << 32) - 1, "65534"), (1 << 31, None), (65536, None)]
)
def test_cve_2024_40635_a_number_that_nobody_looks_at(
    ground: Settings, attack_image: str, monkeypatch: pytest.MonkeyPatch, number: int,
    then: str | None,
) -> None:  # fmt: skip
    """The other half: in the plan of a user nothing is parsed any more. Beyond 32 bits it is root,
    and -1 is "as before" (setresuid(2)): the host's root, for whom the container has no number;
    what a namespace of 65,536 ids does not have the kernel refuses by itself (since 3.8)."""

    def unlooked(plan: Plan) -> Plan:
        return tuple(
            Op("user", (number, *item.values[1:])) if item.name == "user" else item for item in plan
        )

    edit_plans(monkeypatch, unlooked)
    task = run_task(task_of(container(attack_image, "id", "-u", user="app")), settings=ground)
    task.wait(TIMEOUT_S)
    if then is None:
        assert "setresuid" in (task.containers["app"].reason or "")
    else:
        assert text_of(task).split() == [then], task.containers["app"].reason


def test_cve_2026_47262_endless_passwd(
    ground: Settings, registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """CVE-2026-47262: /etc/group of 64 MiB, one line, in a layer of some KiB. A mebibyte of it is
    all that is kept; what stands behind that is read by a store that has another bound."""

    def pushed(group: bytes) -> str:
        files = busybox_files() | {"etc/group": group}
        path = tmp_path_factory.mktemp("group") / "layout"
        layout = build_oci_layout(path, [tar_layer(files)], {"User": "app:extra"})
        return registry.push(layout, "group")

    def task_of_image(image: str, pull: PullPolicy = "always") -> Task:
        task = run_task(task_of(container(image, "id", "-g")), settings=ground, pull=pull)
        task.wait(TIMEOUT_S)
        return task

    assert text_of(task_of_image(pushed(b"extra:x:77:\n"))) == "77\n"
    for endless in (b"x" * (64 << 20), b"x" * (2 << 20) + b"\nextra:x:77:\n"):
        image = pushed(endless)
        task = task_of_image(image)
        assert task.exit_code is None
        assert "group" in (task.containers["app"].reason or "") + (task.stopped_reason or "")
    images = open_store(ground)
    (kept,) = (item for item in images.list_images() if len(item.group) == store.MAX_FILE_READ
               and task.state.container("app").image_digest == item.digest)  # fmt: skip
    stored = images.read_image_file(kept.image_id)
    monkeypatch.setattr(store, "MAX_FILE_READ", 4 << 20)
    images.discard(images.image_directory(kept.image_id))
    assert kept.image_id not in {item.image_id for item in images.list_images()}
    images.build_image(
        kept.image_id, stored.config,
        [
            store.LayerEntry(
                diff_id=diff_id, compressed_bytes=stored.compressed_bytes, blob_bytes=blocks * 4096
            )
            for diff_id, blocks in zip(stored.diff_ids, stored.blob_blocks, strict=True)
        ],
    )  # fmt: skip
    assert text_of(task_of_image(image, "never")).split()[-1] == "77"


LABELS = {
    "com.amazonaws.ecs.task-arn": "arn:aws:ecs:us-east-1:1:task/x", "binary": "binary:///bin/sh",
    "io.containers.logdriver": "binary:///bin/sh?x", "\x1b[2J": "\x1b]0;title\x07",
    "": "$(touch /x)",
    "run.oci.hooks": "/bin/sh", "io.kubernetes.cri.container-log": "/etc/passwd",
}  # fmt: skip


def test_cve_2026_53488_labels_choose_nothing(
    ground: Settings, registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """CVE-2026-53488: labels of an image reached the host's logger. Here nothing reads them, so
    there is no defence to take away; what shows them writes JSON, which has no raw escapes."""
    path = tmp_path_factory.mktemp("labels") / "layout"
    layout = build_oci_layout(path, [tar_layer(busybox_files())], {"Labels": LABELS})
    task = run_task(
        task_of(container(registry.push(layout, "labels"), "echo", "inert", dockerLabels=LABELS)),
        settings=ground,
    )
    task.wait(TIMEOUT_S)
    assert text_of(task) == "inert\n"
    for command in (("describe", task.id), ("ps", "--all"), ("logs", task.id), ("events", task.id)):
        shown = run_cli(ground, *command)
        assert "\x1b" not in shown.stdout + shown.stderr, command


def test_cve_2025_23266_environment_of_an_image_stays_in_it(
    ground: Settings, attack_image: str
) -> None:
    """CVE-2025-23266: a helper of the host was run with the image's LD_PRELOAD."""
    names = ("LD_PRELOAD", "LD_LIBRARY_PATH", "GCONV_PATH", "PYTHONPATH")
    variables = [{"name": name, "value": "/canary.so"} for name in names]
    with run_task(
        task_of(container(attack_image, "sleep", "300", environment=variables)), settings=ground
    ) as task:
        task.until("RUNNING", TIMEOUT_S)
        assert execute(ground, task, "env").count("/canary.so") == len(names)
        pid = shim_of(ground, task)
        assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()
    # A shim that is started with these variables has them: then it would be seen.
    spawn = os.posix_spawn

    def with_variables(path: str, arguments: list[str], _: object, **more: Any) -> int:
        environment = {item["name"]: item["value"] for item in variables}
        return spawn(path, arguments, environment, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_spawn", with_variables)
        task = run_task(task_of(container(attack_image, "sleep", "300")), settings=ground)
        task.until("RUNNING", TIMEOUT_S)
    with task:
        environment = Path(f"/proc/{shim_of(ground, task)}/environ").read_bytes()
        assert environment.count(b"/canary.so") == len(names)


def test_log_lines_do_not_drive_a_terminal(
    ground: Settings, attack_image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CVE-2021-25743 (kubectl): escape sequences of strangers, in what we ourselves print of them;
    a container's output is its own, as with `docker logs`."""
    owned = "\x1b]0;owned\x07"
    script = r"printf '\033]0;owned\007\n'"
    task = run_task(task_of(container(attack_image, "sh", "-c", script)), settings=ground)
    assert task.wait(TIMEOUT_S) == 0
    assert text_of(task) == f"{owned}\n", "it is there to be shown"
    assert "\x1b" not in run_cli(ground, "describe", task.id).stdout
    # The name of a program that is not there is in the reason, which is printed in several places.
    path = tmp_path / "definition.json"
    path.write_text(json.dumps(task_of(container(attack_image, owned))))
    shown = run_cli(ground, "run", path)
    assert shown.returncode == 127
    assert "owned" in shown.stderr
    assert "\x1b" not in shown.stdout + shown.stderr
    # Without what makes text printable the terminal gets it.
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("fargatelite.cli.") and hasattr(module, "make_printable"):
                patch.setattr(module, "make_printable", lambda text: text)
        arguments = ["--data-root", ground.data_root, "--run-root", ground.run_root, "run"]
        with pytest.raises(SystemExit):
            main([*arguments, str(path)])
    assert owned in capsys.readouterr().err
    failed = run_task(task_of(container(attack_image, owned)), settings=ground)
    failed.wait(TIMEOUT_S)
    assert owned in (failed.containers["app"].reason or ""), "raw for whoever asks by the API"


EXECS = 10_000


def test_execs_that_are_given_up(ground: Settings, attack_image: str) -> None:
    """CVE-2022-23471, CVE-2025-64329 (containerd): an exec whose client goes away left a goroutine,
    and at last no memory. 10,000 of them, at different moments, into a container that kills whoever
    comes: the shim is what it was. What the shim holds of each client goes with its descriptor in
    one place of its loop: there is no defence beside it to take away."""
    hostile = container(attack_image, "sh", "-c", "while :; do kill -9 -1; done", name="hostile")
    with run_task(
        task_of(hostile, container(attack_image, "sleep", "300", name="calm")), settings=ground
    ) as task:
        task.until("RUNNING", TIMEOUT_S)
        record = read_record(ground, task.id)
        assert record is not None
        run = RunDirectory(ground.runs, parse_task_id(task.id.rpartition("/")[2]))
        template = run.read_guest_plan("hostile")
        assert template is not None
        guest = encode_plan(complete_guest(decode_plan(template), 0, ("true",), (), terminal=None))
        pid = shim_of(ground, task)

        def held() -> tuple[int, int]:
            status = Path(f"/proc/{pid}/status").read_text()
            return len(os.listdir(f"/proc/{pid}/fd")), int(status.split("VmRSS:")[1].split()[0])

        execute(ground, task, "true", name="calm")
        descriptors, resident_kib = held()
        with open(os.devnull, "r+b") as null:
            streams = (null.fileno(),) * 3
            started = 0
            for number in range(EXECS):
                shim = Shim.connect(run.path)
                try:
                    shim.start_process(GUEST_NUMBER + number, guest, streams=streams)
                    if number % 4 == 0:  # the others are gone before it has begun
                        while (event := shim.receive(TIMEOUT_S)) is not None:
                            if isinstance(event, ProcessStarted | ProcessExited | ProcessFailed):
                                started += 1
                                break
                            if isinstance(event, Refused):  # 64 at once are all that there may be
                                break
                except (BrokenPipeError, ConnectionResetError):
                    pass  # more clients than the shim has time for are turned away
                finally:
                    shim.close()
        assert started > EXECS // 100
        assert execute(ground, task, "echo", "well", name="calm") == "well\n"
        now_descriptors, now_resident_kib = held()
        assert now_descriptors <= descriptors + 3 * 64, "as many as may be live"
        assert now_resident_kib < resident_kib + 1024
        assert task.last_status == "RUNNING"


def racing(settings: Settings, image: str) -> list[str]:
    """Eight containers that mount below a directory of a shared volume which a ninth swaps for a
    link to the host's /canary, over and over; why each did not start, or nothing."""
    swap = "mkdir d; ln -s /canary l; while :; do mv d e; mv l d; mv d l; mv e d; done 2>/dev/null"
    shared, inner = {"sourceVolume": "v", "containerPath": "/vol"}, {"sourceVolume": "w"}
    task = run_task(
        task_of(
            container(image, "sh", "-c", f"cd /vol; {swap}", name="swap", mountPoints=[shared]),
            *(
                container(
                    image, "true", name=f"b{number}", essential=False,
                    mountPoints=[shared, {**inner, "containerPath": "/vol/d/y"}],
                    dependsOn=[{"containerName": "swap", "condition": "START"}],
                )
                for number in range(8)
            ),
            volumes=[{"name": "v"}, {"name": "w"}],
        ),
        settings=settings,
    )  # fmt: skip
    with task:
        deadline = time.monotonic() + TIMEOUT_S
        names = [f"b{number}" for number in range(8)]
        while any(task.containers[name].last_status != "STOPPED" for name in names):
            if task.last_status == "STOPPED":  # one that cannot start ends the task
                break
            assert time.monotonic() < deadline
    return [task.containers[name].reason or "" for name in names]


def test_cve_2021_30465_a_mount_point_is_swapped(
    ground: Settings, attack_image: str, tmp_path: Path
) -> None:
    """CVE-2021-30465, CVE-2019-19921: a container swaps another's mount point for a link while that
    is being mounted. With the root changed before, and each target opened once, a link leads
    nowhere on the host; by path and before that, to the host's directory."""
    canary = Path("/canary")
    canary.mkdir()
    try:
        for _ in range(3):
            racing(ground, attack_image)
            assert list(canary.iterdir()) == []
        with pytest.MonkeyPatch.context() as patch:
            edit_plans(patch, before_the_root)
            deadline = time.monotonic() + TIMEOUT_S
            while not list(canary.iterdir()):
                assert time.monotonic() < deadline
                racing(ground, attack_image)
    finally:
        shutil.rmtree(canary)


def racing_directory(
    settings: Settings, image: str, is_enough: Callable[[set[str], list[int]], bool]
) -> tuple[set[str], list[int]]:
    """What `ls` shows to those who join a container whose working directory becomes a link to a
    descriptor of the shim's, over and over, until `is_enough` or the time is over; and how often it
    became one during each of them."""
    swap = (
        f"cd /race; touch d/own; ln -s /proc/self/fd/{RUN_DIRECTORY_FD} l; while :; do "
        "mv d e; mv l d; mv d l; mv e d; printf . >> /swaps; done 2>/dev/null"
    )
    seen: set[str] = set()
    during: list[int] = []
    racer = container(image, "sh", "-c", swap, workingDirectory="/race/d")
    with run_task(task_of(racer), settings=settings) as task:
        task.until("RUNNING", TIMEOUT_S)
        swaps = settings.layers / task.id / "app" / "upper" / "swaps"
        deadline = time.monotonic() + TIMEOUT_S
        while not is_enough(seen, during):
            assert time.monotonic() < deadline, seen
            before = swaps.stat().st_size if swaps.exists() else 0
            done = run_cli(settings, "exec", "--force", task.id, "ls")
            seen.add(done.stdout if done.returncode == 0 else "refused")
            during.append((swaps.stat().st_size if swaps.exists() else 0) - before)
    return seen, during


def test_cve_2024_21626_a_working_directory_is_swapped(
    ground: Settings, attack_image: str, tmp_path: Path
) -> None:
    """CVE-2024-21626 by `exec`: the container's working directory is a link to a directory of the
    host by the time somebody joins. chdir(2) comes when the root is the container's and the ids are
    the task's, and where it led to is looked at after it: it is the container's own or refused."""
    seen, during = racing_directory(
        ground, attack_image, lambda seen, during: len(during) >= 20 and len(seen) >= 2
    )
    assert seen == {"own\n", "refused"}
    assert sum(count > 0 for count in during) >= 10, during

    def weakened(spec: ContainerSpec) -> Plan:
        return Weakness(frozenset({"user namespace"})).edit(compile_guest(spec))

    with pytest.MonkeyPatch.context() as patch:
        weaken_shim(
            patch, tmp_path,
            ("ops.c", "syscall(SYS_getcwd, where, sizeof where) < 0", "0"),
            ("ops.c", "return where[0] == '/' ? 0 :", "where[0] = '/';\n    return 1 ? 0 :"),
        )  # fmt: skip
        patch.setattr(work, "compile_guest", weakened)
        racing_directory(
            ground, attack_image, lambda seen, _: any("shim.sock" in item for item in seen)
        )


def test_cp_runs_nothing_of_the_container(
    ground: Settings, registry: RunningRegistry, attack_program: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """CVE-2019-14271, CVE-2026-41567: `docker cp` loaded libnss, ran a decompressor of the
    container. All programs of this one's are traps; a copy the way others make it, by the
    container's tar, springs them."""
    trap = b"#!/bin/busybox sh\necho sprung >> /sprung\n"
    files = busybox_files() | {
        "bin/tar": trap, "bin/gzip": trap, "bin/unpigz": trap, "bin/xz": trap,
        "lib/x86_64-linux-gnu/libnss_files.so.2": trap, "data/file": b"data",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("traps") / "layout"
    image = registry.push(build_oci_layout(path, [tar_layer(files)]), "traps")
    out = tmp_path_factory.mktemp("out")
    with run_task(task_of(container(image, "sleep", "300")), settings=ground) as task:
        task.until("RUNNING", TIMEOUT_S)
        assert run_cli(ground, "cp", f"{task.id}:/data/file", out).returncode == 0
        assert run_cli(ground, "cp", out / "file", f"{task.id}:/tmp/back").returncode == 0
        assert (
            execute(ground, task, "sh", "-c", "cat /tmp/back; ls /sprung 2>/dev/null; true")
            == "data"
        )
        execute(ground, task, "tar", "-cf", "-", "/data/file")
        assert execute(ground, task, "cat", "/sprung") == "sprung\n"
    assert (out / "file").read_bytes() == b"data"


def test_cve_2022_23648_paths_of_a_definition(ground: Settings, attack_image: str) -> None:
    """CVE-2022-23648: paths with `..`. A volume's is refused, a working directory's ends at the
    container's root."""
    with pytest.raises(InvalidTaskDefinition, match="containerPath"):
        run_task(
            task_of(
                container(
                    attack_image, "pwd",
                    mountPoints=[{"sourceVolume": "v", "containerPath": "/../../../vol"}],
                ),
                volumes=[{"name": "v"}],
            ),
            settings=ground,
        )  # fmt: skip
    task = run_task(
        task_of(container(attack_image, "sh", "-c", "pwd", workingDirectory="/../../../made")),
        settings=ground,
    )
    task.wait(TIMEOUT_S)
    assert not Path("/made").exists()
    assert text_of(task) == "/made\n", task.containers["app"].reason
    # By path and before pivot_root, the same one is made in our own directories.
    made = Path(ground.data_root, "tasks", "made")
    with pytest.MonkeyPatch.context() as patch:
        edit_plans(patch, before_the_root)
        run_task(
            task_of(container(attack_image, "pwd", workingDirectory="/../../../made")),
            settings=ground,
        ).wait(TIMEOUT_S)
    assert made.is_dir()
    made.rmdir()
