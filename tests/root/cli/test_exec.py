"""`fargatelite exec`: the container's own namespaces, user, environment and limits."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fargatelite import Settings, Task, run_task
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry]

TIMEOUT_S = patient(60)


def _definition(image: str) -> dict[str, Any]:
    script = "hostname > /tmp/mark; echo ready; while :; do sleep 0.1; done"
    app = {
        "name": "app",
        "image": image,
        "user": "app",
        "command": ["sh", "-c", script],
        "environment": [{"name": "SECRET", "value": "s3cr3t"}],
        "stopTimeout": 2,
        "linuxParameters": {"capabilities": {"drop": ["NET_RAW"]}},
    }
    other = {"name": "other", "image": image, "command": ["sleep", "300"], "stopTimeout": 2}
    return {
        "family": "exec", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
        "cpu": "256", "memory": "512", "containerDefinitions": [app, other],
    }  # fmt: skip


@pytest.fixture
def task(settings: Settings, busybox: str) -> Iterator[Task]:
    with run_task(_definition(busybox), settings=settings, enable_execute_command=True) as made:
        for line in made.logs("app", follow=True):
            if line.text == b"ready":
                break
        made.until("RUNNING", TIMEOUT_S)
        yield made


def _command(settings: Settings, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "fargatelite", "--data-root", settings.data_root,
        "--run-root", settings.run_root, "exec", *arguments,
    ]  # fmt: skip


def _exec(
    settings: Settings, *arguments: str, data: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        _command(settings, *arguments),
        input=data,
        capture_output=True,
        timeout=patient(60),
        check=False,
    )


@pytest.mark.vm
def test_it_is_in_the_container(task: Task, settings: Settings) -> None:
    script = (
        "id -u; cat /tmp/mark; echo $SECRET $MORE; pwd; cat /proc/self/cgroup | head -1;"
        " grep -E 'Cap(Prm|Bnd)|Seccomp:' /proc/self/status; ls /proc/self/fd | wc -l; echo err >&2"
    )
    done = _exec(settings, task.id, "-c", "app", "-e", "MORE=yes", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "1000"
    assert lines[1].startswith("ip-10-")
    assert lines[2] == "s3cr3t yes"
    assert lines[3] == "/"
    assert lines[4].endswith(":/")  # its own group is the root of what it sees
    assert lines[5].split() == ["CapPrm:", "0" * 16]
    assert lines[6].split() == ["CapBnd:", f"{0xA80425FB & ~(1 << 13):016x}"]
    assert lines[7].split() == ["Seccomp:", "2"]
    assert lines[8] == "4"  # three and ls' own
    assert done.stderr == b"err\n"
    state = (settings.runs / task.id / "state.json").read_text()
    plans = b"".join(path.read_bytes() for path in (settings.runs / task.id).glob("guest-*"))
    assert "MORE" not in state
    assert b"s3cr3t" not in plans


def test_input_exit_code_and_signal(task: Task, settings: Settings) -> None:
    done = _exec(settings, "-i", task.id, "-c", "app", "sh", "-c", "tr a-z A-Z; exit 7", data=b"ab")
    assert (done.returncode, done.stdout) == (7, b"AB")
    done = _exec(settings, task.id, "-c", "app", "sh", "-c", "kill -9 $$")
    assert done.returncode == 137
    big = os.urandom(1 << 20)
    done = _exec(settings, "-i", task.id, "-c", "app", "cat", data=big)
    assert done.stdout == big


def test_a_signal_reaches_the_command(task: Task, settings: Settings) -> None:
    script = "trap 'echo got; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    with subprocess.Popen(
        _command(settings, task.id, "-c", "app", "sh", "-c", script), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"got\n"
    assert process.returncode == 5


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["nothing-here"], 127, "executable file not found in $PATH"),
        (["/etc/passwd"], 126, "permission denied"),
    ],
)
def test_a_command_that_cannot_run(
    task: Task, settings: Settings, command: list[str], code: int, words: str
) -> None:
    done = _exec(settings, task.id, "-c", "app", *command)
    assert done.returncode == code
    assert words in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 125, "say which with --container"),
        (["-c", "nobody"], 125, "has no container 'nobody'; it has app, other"),
        (["-c", "app", "-e", "WRONG"], 2, "'WRONG' is not NAME=VALUE"),
    ],
)
def test_wrong_use(
    task: Task, settings: Settings, arguments: list[str], code: int, words: str
) -> None:
    done = _exec(settings, *arguments, task.id, "true")
    assert done.returncode == code
    assert words in done.stderr.decode()


def test_it_must_be_allowed(settings: Settings, busybox: str) -> None:
    with run_task(_definition(busybox), settings=settings) as task:
        task.until("RUNNING", TIMEOUT_S)
        done = _exec(settings, task.id, "-c", "other", "true")
        assert done.returncode == 125
        assert b"execute command was not enabled" in done.stderr
        assert _exec(settings, "--force", task.id, "-c", "other", "true").returncode == 0


@pytest.mark.vm
def test_a_terminal_of_the_container(task: Task, settings: Settings) -> None:
    script = "tty; stty size; test -t 0 && test -t 1 && echo yes; read line; echo got $line; exit 3"
    pid, master = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable, _command(settings, "-it", task.id, "-c", "app", "sh", "-c", script)
        )
    import fcntl
    import struct
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    seen, sent = b"", False
    deadline = time.monotonic() + patient(30)
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 5)[0]:
            break
        try:
            data = os.read(master, 4096)
        except OSError:
            break
        seen += data
        if b"yes" in seen and not sent:
            sent = True
            os.write(master, b"hello\r")
    os.close(master)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3, seen
    text = seen.decode()
    assert "/dev/pts/" in text
    assert "33 99" in text
    assert "got hello" in text


@pytest.mark.vm
def test_a_guest_dies_with_its_task(settings: Settings, busybox: str) -> None:
    with run_task(_definition(busybox), settings=settings) as task:
        task.until("RUNNING", TIMEOUT_S)
        with subprocess.Popen(
            _command(settings, "--force", task.id, "-c", "app", "sh", "-c", "echo up; sleep 300"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            task.stop()
            process.wait(patient(20))
        assert process.returncode in (125, 137)
