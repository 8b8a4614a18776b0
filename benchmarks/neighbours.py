"""A victim beside hostile tasks: how long its requests take, alone and beside each.

python -m benchmarks.neighbours [REQUESTS]     as root; benchmarks/results/neighbours.json and the
table in docs/security.md

The victim (victim.c) has 0.5 CPU, each neighbour 1 CPU and 2 GiB and does nothing but harm. Three
victims: a task beside a hostile task; a plain process of the host beside the same task, which is
the bare limit; and podman's beside podman's, the peer. Each runs alone just before, in each of
ROUNDS rounds, so that drift of the machine falls on all of them. Beside each hostile task the host
itself is asked as well: how long `fargatelite ps` and the start of a program take.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import Peers, memory_directory, running_peers, timed_ms
from benchmarks.report import p50, p99
from fargatelite import Settings, Task, run_task
from fargatelite.runtime.images import open_store
from tests.fixtures.images import build_oci_layout, busybox_files, tar_layer

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "security.md"
RESULT = ROOT / "benchmarks" / "results" / "neighbours.json"
MARKS = ("<!-- neighbours: begin -->", "<!-- neighbours: end -->")
REQUESTS = 600
ROUNDS = 3
PROGRAM_STARTS = 40
SETTLE_S = 2.0
"""A neighbour's harm is under way."""
TIMEOUT_S = 300
PROMISE = 2.0
CONTESTANTS = ("task", "process", "podman")

NEIGHBOURS = {
    "fork bomb": "f() { f | f & }; f; while :; do sleep 1; done",
    "memory bomb": "while :; do attack memory; done",
    "disk filler": "while :; do dd if=/dev/zero of=/fill bs=1M; rm /fill; done",
    "inode filler": "mkdir /many; while :; do attack inodes /many; rm -r /many/*; done",
    "log flood": "yes a line of a log that has no end, and tells nothing",
    "page cache thrash": "dd if=/dev/zero of=/big bs=1M count=3072;"
    " while :; do cat /big >/dev/null; done",
    "CPU hog": "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait",
}

Microseconds = list[tuple[float, float]]
"""Of each request: from its start, and from when it was due."""


def _parse(text: str) -> Microseconds:
    lines = text.splitlines()
    if not lines or lines[-1] != "done":
        raise RuntimeError(f"the victim did not end: {text[-200:]}")
    pairs = [line.split() for line in lines[:-1]]
    return [(float(took), float(late)) for took, late in pairs]


class Tasks:
    """Victim and neighbours as tasks."""

    def __init__(self, settings: Settings, image: str) -> None:
        self.settings, self._image = settings, image

    def _start(self, script: str, cpu: str, memory: str) -> Task:
        definition: dict[str, Any] = {
            "family": "neighbours", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
            "cpu": cpu, "memory": memory,
            "containerDefinitions": [
                {"name": "c", "image": self._image, "command": ["sh", "-c", script],
                 "stopTimeout": 2, "linuxParameters": {"initProcessEnabled": True}}
            ],
        }  # fmt: skip
        return run_task(definition, settings=self.settings, pull="never")

    def victim(self, requests: int) -> Microseconds:
        """A victim's requests."""
        task = self._start(f"victim {requests}; exit $?", "512", "1024")
        if task.wait(TIMEOUT_S) != 0:
            raise RuntimeError(f"the victim did not live: {task.exit_code}, {task.stopped_reason}")
        return _parse(
            "".join(
                line.text.decode() + ("" if line.is_partial else "\n") for line in task.logs("c")
            )
        )

    @contextlib.contextmanager
    def harming(self, script: str) -> Iterator[None]:
        """A neighbour from its start on; one that dies of what it does is started again (on cgroup
        v2 a container dies of memory as one)."""
        is_over, is_running = threading.Event(), threading.Event()

        def keep() -> None:
            while not is_over.is_set():
                with self._start(script, "1024", "2048") as task:
                    task.until("RUNNING", TIMEOUT_S)
                    is_running.set()
                    while task.last_status == "RUNNING" and not is_over.wait(0.05):
                        pass

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            if not is_running.wait(TIMEOUT_S):
                raise RuntimeError(f"the neighbour does not start: {script}")
            yield
        finally:
            is_over.set()
            thread.join()


class Podman:
    """The same as containers of podman, with its defaults beside the same limits."""

    def __init__(self, peers: Peers, layout: Path) -> None:
        self._peers = peers
        self._image = self._run("pull", "--quiet", f"oci:{layout}").split()[-1]

    def _run(self, *arguments: str) -> str:
        done = self._peers.call(
            lambda: subprocess.run(
                [*self._peers.podman(), *arguments],
                capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
            )
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"podman {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def _container(self, script: str, cpus: str, memory: str, *options: str) -> str:
        return self._run(
            "run", *options, f"--cgroup-parent=/{self._peers.group}", f"--cpus={cpus}",
            f"--memory={memory}", self._image, "sh", "-c", script,
        )  # fmt: skip

    def victim(self, requests: int) -> Microseconds:
        """A victim's requests."""
        return _parse(self._container(f"victim {requests}; exit $?", "0.5", "1g", "--rm"))

    @contextlib.contextmanager
    def harming(self, script: str) -> Iterator[None]:
        """A neighbour while the block runs."""
        name = self._container(script, "1", "2g", "--detach", "--restart=always").strip()
        try:
            yield
        finally:
            self._run("rm", "--force", "--time=0", name)


class Measured:
    """All requests of a contestant beside each neighbour and alone before it, and what the host
    itself said meanwhile."""

    def __init__(self) -> None:
        self.requests: dict[str, dict[str, dict[str, Microseconds]]] = defaultdict(
            lambda: {name: {"alone": [], "beside": []} for name in CONTESTANTS}
        )
        self.host: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def ask_host(self, kind: str, settings: Settings) -> None:
        """How long commands of the host take now, in milliseconds."""
        command = [
            sys.executable, "-m", "fargatelite", "--data-root", settings.data_root,
            "--run-root", settings.run_root, "ps",
        ]  # fmt: skip
        self.host[kind]["fargatelite ps"] += [timed_ms(command) for _ in range(2)]
        self.host[kind]["true"] += [timed_ms(["/bin/true"]) for _ in range(PROGRAM_STARTS)]

    def summary(self) -> dict[str, Any]:
        """Percentiles."""

        def of(pairs: Microseconds) -> dict[str, float]:
            took, late = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            return {"p50": p50(took), "p99": p99(took), "max": max(took), "late_p99": p99(late)}

        return {
            "us": {
                kind: {
                    name: {when: of(pairs) for when, pairs in measured.items()}
                    for name, measured in contestants.items()
                }
                for kind, contestants in self.requests.items()
            },
            "host_ms": {
                kind: {name: {"p50": p50(v), "max": max(v)} for name, v in asked.items()}
                for kind, asked in self.host.items()
            },
        }


def _measure_round(
    measured: Measured, tasks: Tasks, podman: Podman, directory: Path, requests: int
) -> None:
    def process(count: int) -> Microseconds:
        (directory / "bare").mkdir(exist_ok=True)
        command = [str(directory / "victim"), str(count), str(directory / "bare")]
        return _parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    measured.ask_host("nobody", tasks.settings)
    for kind, script in NEIGHBOURS.items():
        found = measured.requests[kind]

        def ask(name: str, when: str, victim: Callable[[int], Microseconds]) -> None:
            found[name][when] += victim(requests)  # noqa: B023  called in this turn only

        for name, victim in zip(
            CONTESTANTS, (tasks.victim, process, podman.victim), strict=True
        ):  # fmt: skip
            ask(name, "alone", victim)
        with tasks.harming(script):
            time.sleep(SETTLE_S)
            ask("task", "beside", tasks.victim)
            ask("process", "beside", process)
            measured.ask_host(kind, tasks.settings)
        with podman.harming(script):
            time.sleep(SETTLE_S)
            ask("podman", "beside", podman.victim)
        print(kind, {name: round(_times(found[name]), 2) for name in CONTESTANTS}, flush=True)


def _times(found: dict[str, Microseconds]) -> float:
    alone, beside = (p99([pair[0] for pair in found[when]]) for when in ("alone", "beside"))
    return beside / alone


def _rows(result: dict[str, Any]) -> list[str]:
    rows = [
        f"`make bench-neighbours`, Linux {result['kernel']}, {result['cpus']} shared virtual CPUs, "
        f"{result['rounds']} rounds of {result['requests']} requests, {result['podman']}. The 99th "
        "percentile of a request, in microseconds: of a task with 0.5 CPU, alone and beside a task "
        "of 1 CPU and 2 GiB; and as often as alone: that task, a plain process of the host beside "
        "the same neighbour, and podman's container beside podman's.",
        "",
        "| Neighbour | alone | beside | task, times | process, times | podman, times |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for kind, measured in result["us"].items():
        alone, beside = (measured["task"][when]["p99"] for when in ("alone", "beside"))
        cells = []
        for name in CONTESTANTS:
            times = measured[name]["beside"]["p99"] / measured[name]["alone"]["p99"]
            cells.append(f"{times:.2f}{'' if times <= PROMISE else ' (over 2)'}")
        rows.append(f"| {kind} | {alone:.0f} | {beside:.0f} | {' | '.join(cells)} |")
    rows += [
        "",
        "The host meanwhile, in milliseconds, median and worst: the command `fargatelite ps`, and "
        "the start and end of `/bin/true`.",
        "",
        "| Beside | `ps` | worst | `true` | worst |",
        "|---|--:|--:|--:|--:|",
    ]
    for kind, asked in result["host_ms"].items():
        ps, true = asked["fargatelite ps"], asked["true"]
        rows.append(
            f"| {kind} | {ps['p50']:.0f} | {ps['max']:.0f} | {true['p50']:.1f} | "
            f"{true['max']:.0f} |"
        )
    return rows


def _build(directory: Path) -> Path:
    """An image with the programs; they lie in the directory too."""
    files = busybox_files()
    for program, source in (
        ("attack", ROOT / "tests" / "attacks" / "attack.c"),
        ("victim", ROOT / "benchmarks" / "victim.c"),
    ):
        built = directory / program
        subprocess.run(["cc", "-std=gnu11", "-O1", "-static", "-o", built, source], check=True)
        files[f"bin/{program}"] = built.read_bytes()
    return build_oci_layout(directory / "layout", [tar_layer(files)])


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    version = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=True)
    measured = Measured()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fln")))
        layout = _build(directory)
        settings = Settings(data_root=str(directory / "data"), run_root=str(directory / "run"))
        (image,) = open_store(settings).load(layout)
        run = stack.enter_context(memory_directory())
        peers = stack.enter_context(running_peers(directory / "peers", run))
        stack.callback(peers.remove_podman)
        tasks, podman = Tasks(settings, image.reference), Podman(peers, layout)
        for _ in range(ROUNDS):
            _measure_round(measured, tasks, podman, directory, requests)
    result = {
        "version": 2, "kernel": os.uname().release, "cpus": os.cpu_count(), "requests": requests,
        "rounds": ROUNDS, "podman": version.stdout.strip(), **measured.summary(),
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    before, _, rest = DOCUMENT.read_text().partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise RuntimeError(f"{DOCUMENT} has no {MARKS}")
    DOCUMENT.write_text("\n".join([before + MARKS[0], *_rows(result), mark]) + after)


if __name__ == "__main__":
    main()
