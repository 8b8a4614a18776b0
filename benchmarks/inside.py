"""`make bench-inside`: what a process gets of the machine in a task, beside podman and the host.

System calls, forks, loopback round trips, a synced file, opened files of the image, arithmetic
(inside.c), and the start of a Python with many imports, which looks for some thousand paths. The
same image for both, each work in a container of its own, one after the other; a whole CPU and no
limit near what the work needs. Run as root.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import fargatelite
from benchmarks.density import derive
from benchmarks.images import TAG, make_large, running_registry
from benchmarks.launch import LIMITS
from benchmarks.peers import Peers, memory_directory, running_peers
from benchmarks.report import BENCH
from benchmarks.rows import Row, compare, versions, write_results
from fargatelite.settings import Settings
from tests.fixtures.images import tar_layer

ROUNDS = 12
WORKS = {"syscall": "1/s", "fork": "1/s", "loopback": "1/s", "write": "MiB/s", "open": "1/s",
         "cpu": "1/s"}  # fmt: skip
IMPORTS = (
    "import asyncio, ctypes, decimal, email.mime.text, http.client, json, multiprocessing, "
    "setuptools, sqlite3, ssl, tarfile, unittest.mock, urllib.request, xml.dom.minidom"
)
PYTHON = f"""
import os, subprocess, time
started = time.perf_counter()
for _ in range(3):
    subprocess.run(["python3", "-B", "-c", {IMPORTS!r}], check=True)
print(3 / (time.perf_counter() - started))
"""


def build_program(directory: Path) -> Path:
    """inside.c, static. Raises: CalledProcessError."""
    program = directory / "inside"
    source = Path(__file__).with_name("inside.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True, timeout=60)
    return program


def run_ours(settings: Settings, reference: str, command: list[str]) -> float:
    """What a task printed."""
    definition = {
        "family": "inside", "requiresCompatibilities": ["FARGATE"], "networkMode": "awsvpc",
        "cpu": "1024", "memory": "2048",
        "containerDefinitions": [{"name": "main", "image": reference, "command": command}],
    }  # fmt: skip
    task = fargatelite.run_task(definition, pull="missing", settings=settings)
    code = task.wait(120)
    printed = [line.text for line in task.logs("main")]
    if code != 0:
        raise RuntimeError(f"{command[0]} ended with {code}: {printed}")
    return float(printed[-1])


def run_podman(peers: Peers, reference: str, command: list[str]) -> float:
    """What a container printed."""

    def run() -> str:
        return subprocess.run(
            [*peers.podman(), "run", "--rm", "--network=none", *LIMITS,
             f"--cgroup-parent=/{peers.group}", "--memory=2g", "--memory-swap=2g", "--cpus=1",
             reference, *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=120,
        ).stdout  # fmt: skip

    return float(peers.call(run).split()[-1])


def run_host(command: list[str]) -> float:
    """What it printed without any container."""
    done = subprocess.run(
        command, cwd=BENCH / "inside", capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout.split()[-1])


def run(rounds: int = ROUNDS) -> list[Row]:
    """The whole benchmark."""
    base = BENCH / "inside"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    print("\ninside a container: how much of the machine, beside podman and the bare host")
    program = build_program(base)
    layout = base / "layout"
    shutil.rmtree(layout, ignore_errors=True)
    derive(make_large(BENCH / "pull"), layout, tar_layer({"opt/bin/inside": program.read_bytes()}))
    shutil.rmtree(base / "data", ignore_errors=True)
    rows: list[Row] = []
    with memory_directory() as run_directory, contextlib.ExitStack() as stack:
        peers = stack.enter_context(running_peers(base / "peers", run_directory))
        stack.callback(peers.remove_podman)
        settings = Settings(data_root=str(base / "data"), run_root=str(run_directory / "ours"))
        with running_registry(base / "registry") as registry:
            reference = registry.push(layout, "inside", TAG)
            run_ours(settings, reference, ["/opt/bin/inside", "cpu"])
            peers.run([*peers.podman(), "pull", "--quiet", "--tls-verify=false", reference])
        for work, unit in WORKS.items():
            rows += _measure(settings, peers, reference, rounds, work, unit,
                             ["/opt/bin/inside", work], [str(program), work])  # fmt: skip
        rows += _measure(settings, peers, reference, rounds, "python with many imports", "1/s",
                         ["python3", "-c", PYTHON], None)  # fmt: skip
    write_results("inside", rows, versions(("podman",)))
    return rows


def _measure(
    settings: Settings, peers: Peers, reference: str, rounds: int, work: str, unit: str,
    command: list[str], bare: list[str] | None,
) -> list[Row]:  # fmt: skip
    ours: list[float] = []
    theirs: list[float] = []
    host: list[float] = []
    for number in range(rounds + 1):
        turn = [
            (ours, lambda: run_ours(settings, reference, command)),
            (theirs, lambda: run_podman(peers, reference, command)),
        ]
        if bare is not None:
            turn.append((host, lambda: run_host(bare)))
        for values, call in turn[number % len(turn) :] + turn[: number % len(turn)]:
            values.append(call())
    del ours[0], theirs[0]
    rows = [compare(f"inside: {work}", unit, ours, "podman", theirs, "ratio >= 0.97")]
    if host:
        rows.append(compare(f"inside: {work}", unit, ours, "bare host", host[1:]))
    return rows


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
