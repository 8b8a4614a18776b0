"""The shim with real namespaces: what a process sees, what fails how, what is left on disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fargatelite.sandbox.compile import (
    ContainerSpec,
    Process,
    capabilities_of,
    compile_container,
    compile_health_check,
)
from fargatelite.sandbox.plan import Plan, encode_plan
from fargatelite.sandbox.rootfs import Directories
from fargatelite.sandbox.seccomp import compile_profile
from fargatelite.sandbox.users import User
from fargatelite.shim import (
    ProcessExited,
    ProcessFailed,
    ProcessStarted,
    ProcessStatus,
    Ready,
    Refused,
    Shim,
    ShimEvent,
    read_exit_records,
)
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.vm]

ID_BASE = 0x70000000 + 4000 * 65536  # beyond the slots that any other test takes
APPLETS = "sh ls cat id mount ps sleep env echo true false kill dd ln hostname wc".split()
DEADLINE_S = patient(20)


class Bench:
    """A run directory, a root file system of busybox, and the shim that runs plans in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image = path / "image"
        (self.image / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", self.image / "bin" / "busybox")
        for applet in APPLETS:
            (self.image / "bin" / applet).symlink_to("busybox")
        (self.image / "etc").mkdir()
        hosts = path / "hosts"
        hosts.write_text("127.0.0.1 localhost\n")
        os.chown(hosts, ID_BASE, ID_BASE)
        self.run = path / "run"
        self.run.mkdir()
        self.shim = Shim.start(self.run, ID_BASE, 65536)
        self.ready = self.shim.wait_ready()
        self.seccomp = compile_profile(capabilities_of((), ()))

    def spec(self, *argv: str, number: int = 0, user: User | None = None) -> ContainerSpec:
        container = self.path / f"container-{number}"
        for name in ("lower", "upper", "work", "merged"):
            (container / name).mkdir(parents=True, exist_ok=True)
        os.chown(container / "upper", ID_BASE, ID_BASE)
        return ContainerSpec(
            name="c",
            number=number,
            process=Process(
                argv=argv,
                environment={"PATH": "/bin", "MARK": "yes"},
                user=user or User(uid=0, gid=0),
                working_directory="/",
            ),
            directories=Directories(
                container=str(container),
                image=str(self.image),
                files={"/etc/hosts": str(self.path / "hosts")},
                groups={},
            ),
            id_base=ID_BASE,
            hostname="box",
            log_path=str(self.path / f"log-{number}"),
            join_files=(),
            clone_into=None,
            seccomp=self.seccomp,
            capabilities=capabilities_of((), ()),
        )

    def start(self, spec: ContainerSpec) -> ShimEvent | None:
        self.shim.start_process(spec.number, encode_plan(compile_container(spec)))
        return self.shim.receive(DEADLINE_S)

    def run_to_end(self, spec: ContainerSpec) -> tuple[int, str]:
        started = self.start(spec)
        assert isinstance(started, ProcessStarted), started
        exited = self.shim.receive(DEADLINE_S)
        assert isinstance(exited, ProcessExited), exited
        return exited.exit_code, self.log(spec.number)

    def log(self, number: int = 0) -> str:
        lines = (self.path / f"log-{number}").read_text().splitlines()
        text = ""
        for line in lines:
            _, _, tag, rest = line.split(" ", 3)
            text += rest + ("\n" if tag == "F" else "")
        return text

    def close(self) -> None:
        os.close(self.ready.user_namespace)
        os.close(self.ready.network_namespace)
        pid = self.shim.pid
        assert pid is not None
        self.shim.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.shim.reap()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_process_sees_its_own_world(bench: Bench) -> None:
    script = (
        "id; hostname; cat /proc/self/uid_map; cat /etc/hosts; ls /proc/self/fd; "
        "grep() { cat /proc/self/status | while read a b; do [ $a = $1 ] && echo $a $b; done; }; "
        "for k in CapInh: CapPrm: CapBnd: CapAmb: Seccomp: NoNewPrivs:; do grep $k; done; echo $$"
    )
    code, text = bench.run_to_end(bench.spec("sh", "-c", script))
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith("uid=0")
    assert lines[1] == "box"
    assert lines[2].split() == ["0", str(ID_BASE), "65536"]
    assert "127.0.0.1 localhost" in lines
    # 3 is the descriptor that ls itself has open on the directory (CVE-2024-21626).
    assert [line for line in lines if line.isdigit()][:4] == ["0", "1", "2", "3"]
    assert "CapInh: 0000000000000000" in lines
    assert "CapPrm: 00000000a80425fb" in lines
    assert "CapBnd: 00000000a80425fb" in lines
    assert "CapAmb: 0000000000000000" in lines
    assert "Seccomp: 2" in lines
    assert lines[-1] == "1", "the container's process is the init of its pid namespace"


def test_another_user_has_no_capabilities_and_owns_its_streams(bench: Bench) -> None:
    script = "id; cat /proc/self/status; echo through >> /dev/stdout; echo no > /root-owned"
    spec = bench.spec("sh", "-c", script, user=User(uid=1000, gid=1001, groups=(50,)))
    code, text = bench.run_to_end(spec)
    assert code != 0
    assert "uid=1000 gid=1001 groups=50" in text
    assert "CapPrm:\t0000000000000000" in text
    assert "CapEff:\t0000000000000000" in text
    assert "through" in text
    assert "can't create /root-owned: Permission denied" in text


def test_mounts_are_only_the_containers(bench: Bench) -> None:
    _, text = bench.run_to_end(bench.spec("mount"))
    targets = [line.split()[2] for line in text.splitlines()]
    assert targets.count("/") == 1
    assert {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"} <= set(targets)
    assert str(bench.path) not in text


@pytest.mark.parametrize(
    "command",
    [
        "echo 1 > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /sys/kernel/uevent_helper",
        "cat /proc/kcore",
        "mount -t tmpfs none /bin",
    ],
)
def test_the_hosts_knobs_are_out_of_reach(bench: Bench, command: str) -> None:
    # /proc/kcore reads as empty (the null device); everything else is refused.
    code, text = bench.run_to_end(bench.spec("sh", "-c", f"{command} | wc -c; {command}"))
    assert code != 0 or text.strip() == "0"
    assert any(
        word in text for word in ("Read-only", "denied", "not permitted", "nonexistent", "0\n")
    )


def test_exit_codes_are_recorded_before_they_are_told(bench: Bench) -> None:
    code, _ = bench.run_to_end(bench.spec("sh", "-c", "exit 7"))
    (record,) = read_exit_records(bench.run / "exits")
    assert code == record.exit_code == 7
    assert 0 < record.started_at_ns <= record.stopped_at_ns


def test_a_signal_reaches_the_process_and_its_number_the_exit_code(bench: Bench) -> None:
    spec = bench.spec("sh", "-c", "trap 'echo got; exit 3' TERM; echo up; while :; do :; done")
    assert isinstance(bench.start(spec), ProcessStarted)
    # The trap is set once "up" is in the log; wait for that by reading the growing file.
    while "up" not in (bench.log() if (bench.path / "log-0").exists() else ""):
        os.sched_yield()
    bench.shim.signal_process(0, signal.SIGTERM)
    exited = bench.shim.receive(DEADLINE_S)
    assert isinstance(exited, ProcessExited)
    assert (exited.exit_code, bench.log()) == (3, "up\ngot\n")


def test_kill_ends_all_of_a_pid_namespace(bench: Bench) -> None:
    bench.start(bench.spec("sh", "-c", "sleep 1000 & sleep 1000 & wait"))
    bench.shim.signal_process(0, signal.SIGKILL)
    exited = bench.shim.receive(DEADLINE_S)
    assert isinstance(exited, ProcessExited)
    assert exited.exit_code == 137


@pytest.mark.parametrize(
    ("argv", "errno_name"),
    [(("nothing-here",), "ENOENT"), (("/etc/hosts",), "EACCES"), (("/etc",), "EACCES")],
)
def test_exec_failures_name_the_program(
    bench: Bench, argv: tuple[str, ...], errno_name: str
) -> None:
    import errno

    failed = bench.start(bench.spec(*argv))
    assert isinstance(failed, ProcessFailed)
    assert failed.failure.errno == getattr(errno, errno_name)
    assert failed.failure.call == "execve"
    assert failed.failure.path == argv[0]
    assert read_exit_records(bench.run / "exits") == []


def test_a_failing_operation_says_which_and_on_what(bench: Bench) -> None:
    spec = bench.spec("true")
    plan = compile_container(
        msgspec.structs.replace(
            spec, directories=msgspec.structs.replace(spec.directories, image="/nonexistent")
        )
    )
    bench.shim.start_process(0, encode_plan(plan))
    failed = bench.shim.receive(DEADLINE_S)
    assert isinstance(failed, ProcessFailed)
    assert failed.failure.op_index is not None
    assert plan[failed.failure.op_index].name == "open_tree"
    assert failed.failure.path == "/nonexistent"


def test_health_check_runs_inside_and_its_output_comes_back(bench: Bench) -> None:
    spec = bench.spec("sleep", "1000")
    bench.start(spec)
    check = compile_health_check(spec, ("CMD-SHELL", "echo $MARK; ps; hostname; exit 4"))
    bench.shim.start_process(1000, encode_plan(check))
    assert isinstance(bench.shim.receive(DEADLINE_S), ProcessStarted)
    exited = bench.shim.receive(DEADLINE_S)
    assert isinstance(exited, ProcessExited)
    output = exited.output.decode()
    assert exited.exit_code == 4
    assert output.startswith("yes\n")
    assert "sleep 1000" in output
    assert output.endswith("box\n")
    assert read_exit_records(bench.run / "exits") == [], "a check is no part of the record"


def test_output_of_any_size_and_shape_is_logged_exactly(bench: Bench) -> None:
    script = "dd if=/dev/zero bs=1000 count=300 2>/dev/null; printf 'no newline'; echo e >&2"
    bench.run_to_end(bench.spec("sh", "-c", script))
    lines = (bench.path / "log-0").read_bytes().splitlines()
    out = b"".join(
        line.split(b" ", 3)[3] + (b"\n" if line.split(b" ", 3)[2] == b"F" else b"")
        for line in lines
        if b" stdout " in line[:60]
    )
    assert out == b"\0" * 300_000 + b"no newline"


def test_another_client_sees_what_lives(bench: Bench) -> None:
    bench.start(bench.spec("sleep", "1000"))
    other = Shim.connect(bench.run)
    other.request_status()
    status = other.receive(DEADLINE_S)
    ready = other.receive(DEADLINE_S)
    assert isinstance(status, ProcessStatus)
    assert status.number == 0
    assert isinstance(ready, Ready)
    os.close(ready.user_namespace)
    os.close(ready.network_namespace)
    other.shut_down()
    refused = other.receive(DEADLINE_S)
    assert isinstance(refused, Refused), "the shim stays while a process lives"
    other.close()


def test_the_shim_ends_with_its_last_client_and_process(bench: Bench) -> None:
    bench.run_to_end(bench.spec("true"))
    pid = bench.shim.pid
    assert pid is not None
    pidfd = os.pidfd_open(pid)
    bench.shim._connection.shutdown(socket.SHUT_RDWR)
    import select

    assert select.select([pidfd], [], [], DEADLINE_S)[0]
    os.close(pidfd)


def _truncated(data: bytes) -> Iterator[bytes]:
    for length in range(8, len(data), max(1, len(data) // 40)):
        yield data[:length]


def _huge_lengths(data: bytes) -> Iterator[bytes]:
    for offset in range(8, min(len(data), 600), 4):
        yield data[:offset] + struct.pack("<I", 0xFFFFFFF0) + data[offset + 4 :]


def _trailing(data: bytes) -> Iterator[bytes]:
    yield data + b"\0"
    yield b"FLPL" + struct.pack("<HH", 2, 0)
    yield b"XXXX" + data[4:]


@pytest.mark.parametrize("mutate", [_truncated, _huge_lengths, _trailing])
def test_a_damaged_plan_is_refused_and_nothing_runs(
    bench: Bench, mutate: Callable[[bytes], Iterator[bytes]]
) -> None:
    """CVE-2021-43784: a length in the runtime's own start message wrapped."""
    plan: Plan = compile_container(bench.spec("true"))
    data = encode_plan(plan)
    tried = 0
    for damaged in mutate(data):
        if damaged == data:
            continue
        bench.shim.start_process(0, damaged)
        event = bench.shim.receive(DEADLINE_S)
        if isinstance(event, ProcessStarted):
            # The change hit a value, not a length: the plan is another valid one.
            bench.shim.receive(DEADLINE_S)
        else:
            assert isinstance(event, ProcessFailed), event
        tried += 1
    assert tried > 2
    assert bench.run_to_end(bench.spec("true", number=1))[0] == 0, "the shim is still well"


def test_trace_says_when_each_operation_ended(bench: Bench) -> None:
    spec = msgspec.structs.replace(bench.spec("true"), trace_path="trace-0")
    plan = compile_container(spec)
    bench.run_to_end(spec)
    data = (bench.run / "trace-0").read_bytes()
    stamps = struct.unpack(f"<{len(data) // 8}Q", data)
    ended = [stamp for stamp in stamps if stamp]
    assert len(stamps) == len(plan) + 1
    assert ended == sorted(ended)
    assert len(ended) > 40
