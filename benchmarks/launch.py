"""`make bench-launch`: how long does one container take, from the call until it runs, has ended?

`true` of busybox, from an image that is in the store, under the smallest task's limits. Ours by the
API in this process; the peers as commands, which is how they are used: crun and runc with a bundle
of the same files (no network, no image, no log, no meter, no user namespace: they do less), podman
with the same image without and with a network, bwrap and systemd-nspawn with the same root. What
all of them keep in /run lies in a tmpfs, as /run is one. Run as root.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

import fargatelite
from benchmarks.bare import BareLaunch
from benchmarks.images import TAG, make_busybox, running_registry
from benchmarks.newest import make_newest
from benchmarks.peers import (
    Peers,
    leave_network,
    memory_directory,
    running_peers,
    timed_ms,
    write_bundle,
)
from benchmarks.report import BENCH, p50, p99
from benchmarks.rows import Row, bars, compare, state, versions, write_results
from fargatelite.runtime.events import ContainerEvent, Event
from fargatelite.settings import Settings
from tests.fixtures.images import build_oci_layout, busybox_files, tar_layer

ROUNDS = 60
WARM_UP = 5
COMMAND = "/bin/true"
AT_ONCE = 100
LAYERS = 50
PLOT = Path(__file__).parent.parent / "docs" / "launch.svg"


class Launch:
    """One task by the API; milliseconds since the call."""

    def __init__(self, settings: Settings, definition: dict[str, object]) -> None:
        at_ns: dict[str, int] = {}
        stopped = threading.Event()

        def on_event(event: Event) -> None:
            # Stamped here, not by `at_ns`: known is what has reached the caller.
            if isinstance(event, ContainerEvent):
                at_ns.setdefault(event.last_status, time.perf_counter_ns())
                if event.last_status == "STOPPED":
                    stopped.set()

        called_ns = time.perf_counter_ns()
        task = fargatelite.run_task(
            definition, pull="missing", on_event=on_event, settings=settings
        )
        code = task.wait(60)
        removed_ns = time.perf_counter_ns()
        if code != 0 or not stopped.wait(10):
            raise RuntimeError(f"task ended with {code}: {task.stopped_reason}")
        self.started_ms = (at_ns["RUNNING"] - called_ns) / 1e6
        self.exited_ms = (at_ns["STOPPED"] - called_ns) / 1e6
        self.removed_ms = (removed_ns - called_ns) / 1e6
        self.phases = task.phases


def definition_of(reference: str, command: str = COMMAND) -> dict[str, Any]:
    """The smallest task."""
    return {
        "family": "bench",
        "requiresCompatibilities": ["FARGATE"],
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [
            {"name": "main", "image": reference, "command": command.split(), "essential": True,
             "stopTimeout": 2}
        ],
    }  # fmt: skip


def rotated(
    contestants: dict[str, Callable[[], None]], rounds: int
) -> Iterator[Callable[[], None]]:
    """All contestants once a round, each round beginning with the next one."""
    works = list(contestants.values())
    for index in range(rounds):
        first = index % len(works)
        yield from works[first:] + works[:first]


# Its defaults raise limits, which needs CAP_SYS_RESOURCE.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


def oci_commands(peers: Peers, bundle: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Those that run a bundle."""
    write_bundle(bundle, peers.group, [COMMAND])
    return {
        name: [
            name, f"--root={peers.run_directory / name}",
            *(["--cgroup-manager=cgroupfs"] if name == "crun" else []),
            "run", f"--bundle={bundle}", "bench",
        ]
        for name in names
    }  # fmt: skip


def podman_command(peers: Peers, reference: str, network: str) -> list[str]:
    """`podman run` under the same limits."""
    return [
        *peers.podman(), "run", "--rm", f"--network={network}", *LIMITS,
        f"--cgroup-parent=/{peers.group}", "--memory=512m", "--memory-swap=512m",
        "--cpu-shares=256", "--cpu-quota=25000", "--pids-limit=32768", reference, COMMAND,
    ]  # fmt: skip


def other_commands(rootfs: Path) -> dict[str, list[str]]:
    """Tools without images, groups or limits of their own."""
    return {
        "bwrap": [
            "bwrap", "--unshare-all", "--bind", str(rootfs), "/", "--proc", "/proc", "--dev",
            "/dev", COMMAND,
        ],
        "systemd-nspawn": [
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network",
            f"--directory={rootfs}", COMMAND,
        ],
        "unshare": [
            "unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--net", "--ipc",
            "--uts", "--cgroup", f"--root={rootfs}", COMMAND,
        ],
    }  # fmt: skip


class Contest:
    """All contestants, each measured once a round."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}
        self._works: dict[str, Callable[[], None]] = {}

    def add(self, name: str, peers: Peers, command: list[str]) -> None:
        """A peer's command; one that this machine cannot run is told of and left out."""
        try:
            peers.run(command)
        except (RuntimeError, OSError) as error:
            self.missing[name] = str(error).replace("\n", " ")[:200]
            print(f"  {name}: not measured: {self.missing[name]}", flush=True)
            return
        self.took[name] = []
        self._works[name] = lambda: self.took[name].append(peers.run(command))

    def add_work(self, name: str, work: Callable[[], None]) -> None:
        """Ours."""
        self._works[name] = work

    def run(self, rounds: int) -> None:
        """Warms up and measures."""
        for work in rotated(self._works, WARM_UP):
            work()
        for values in self.took.values():
            values.clear()
        for work in rotated(self._works, rounds):
            work()


def make_layers(directory: Path, count: int) -> Path:
    """The layout of a busybox image in `count` layers."""
    layout = directory / f"layers-{count}"
    shutil.rmtree(layout, ignore_errors=True)
    layers = [tar_layer(busybox_files())]
    layers += [tar_layer({f"opt/{number}": b"%d\n" % number}) for number in range(1, count)]
    build_oci_layout(layout, layers, {"Cmd": [COMMAND]}, tag=TAG)
    return layout


def measure_single(base: Path, run: Path, rounds: int) -> tuple[list[Row], list[Launch]]:
    """One launch at a time, beside everybody."""
    layout, bundle = make_busybox(base)
    shutil.rmtree(base / "ours", ignore_errors=True)
    (run / "new").mkdir()
    settings = Settings(data_root=str(base / "ours" / "data"), run_root=str(run / "ours"))
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(running_peers(base / "peers", run))
        stack.callback(old.remove_podman)
        new = stack.enter_context(running_peers(base / "newest", run / "new", make_newest()))
        stack.callback(new.remove_podman)
        with running_registry(base / "registry") as registry:
            reference = registry.push(layout, "busybox", TAG)
            many = registry.push(make_layers(base, LAYERS), "layers", TAG)
            for name in (reference, many):
                Launch(settings, definition_of(name))
            for peers in (old, new):
                peers.run([*peers.podman(), "pull", "--quiet", "--tls-verify=false", reference])
        # The registry is gone: from here on nobody can ask it.
        ready = msgspec.structs.replace(settings, prepared_sandboxes=1)
        plain: list[Launch] = []
        prepared: list[Launch] = []
        layered: list[Launch] = []

        def launch_prepared() -> None:
            if not fargatelite.prepare_sandboxes(ready, timeout_s=10):
                raise RuntimeError("no sandbox prepared")
            prepared.append(Launch(ready, definition_of(reference)))

        contest = Contest()
        contest.add_work("ours", lambda: plain.append(Launch(settings, definition_of(reference))))
        contest.add_work("prepared", launch_prepared)
        contest.add_work("layers", lambda: layered.append(Launch(settings, definition_of(many))))
        for name, command in oci_commands(old, bundle, ("crun", "runc")).items():
            contest.add(name, old, command)
        for name, command in other_commands(bundle / "rootfs").items():
            contest.add(name, old, command)
        contest.add("podman, no network", old, podman_command(old, reference, "none"))
        new_bundle = base / "bundle.new"
        shutil.rmtree(new_bundle, ignore_errors=True)
        shutil.copytree(bundle, new_bundle, symlinks=True)
        for name, command in oci_commands(new, new_bundle, ("crun",)).items():
            contest.add(f"{name}, newest", new, command)
        contest.add("podman, newest, no network", new, podman_command(new, reference, "none"))
        new.call(leave_network)
        contest.add("podman, newest, with network", new, podman_command(new, reference, "bridge"))
        contest.run(rounds)
    for launches in (plain, prepared, layered):
        del launches[:WARM_UP]
    return _single_rows(contest, plain, prepared, layered), [plain[-1], prepared[-1]]


def _single_rows(
    contest: Contest, plain: list[Launch], prepared: list[Launch], layered: list[Launch]
) -> list[Row]:
    started = [launch.started_ms for launch in plain]
    exited = [launch.exited_ms for launch in plain]
    ready = [launch.started_ms for launch in prepared]
    ready_exited = [launch.exited_ms for launch in prepared]
    goals = {"crun": 0.5, "crun, newest": 0.5, "runc": 0.2, "podman, no network": 0.025,
             "podman, newest, no network": 0.025, "podman, newest, with network": 1 / 60,
             "bwrap": None, "systemd-nspawn": None, "unshare": None}  # fmt: skip
    rows = []
    for peer, goal in goals.items():
        if peer in contest.missing:
            continue
        theirs, text = contest.took[peer], f"ratio <= {goal:.3g}" if goal else None
        rows += [
            compare("container runs", "ms", started, peer, theirs, text),
            compare("its exit is known", "ms", exited, peer, theirs, text),
            compare("prepared sandbox: container runs", "ms", ready, peer, theirs, text),
            compare("prepared sandbox: its exit is known", "ms", ready_exited, peer, theirs, text),
        ]
    layers = [launch.started_ms for launch in layered]
    rows += [
        state("container runs, warm slot and prepared sandbox", "ms", ready, "value <= 3"),
        state("container runs: p99 / p50", "ratio", p99(started) / p50(started), "value <= 3"),
        compare(f"container runs, image of {LAYERS} layers", "ms", layers, "image of 1 layer",
                started, "ratio <= 1.1"),
    ]  # fmt: skip
    return rows


def measure_bare(base: Path, run: Path, rounds: int) -> list[Row]:
    """Ours beside a C program that makes the same system calls; apart from the rest, as it takes
    its own table for the only one."""
    layout, _ = make_busybox(base)
    shutil.rmtree(base / "bare", ignore_errors=True)
    settings = Settings(data_root=str(base / "bare" / "data"), run_root=str(run / "bare"))
    ours: list[Launch] = []
    bare: list[tuple[float, float]] = []
    with running_registry(base / "registry") as registry:
        definition = definition_of(registry.push(layout, "busybox", TAG))
        Launch(settings, definition)
    with BareLaunch(base / "bare" / "steps", run, settings, definition) as program:
        works = {
            "ours": lambda: ours.append(Launch(settings, definition)),
            "bare": lambda: bare.append(program.round()),
        }
        for work in rotated(works, WARM_UP + rounds):
            work()
    del ours[:WARM_UP], bare[:WARM_UP]
    peer = "bare C program"
    return [
        compare("container runs", "ms", [launch.started_ms for launch in ours], peer,
                [started for started, _ in bare], "ratio <= 2"),
        compare("its exit is known", "ms", [launch.exited_ms for launch in ours], peer,
                [exited for _, exited in bare], "ratio <= 2"),
    ]  # fmt: skip


def measure_throughput(base: Path, run: Path) -> list[Row]:
    """Launches a second with both cores busy: four callers at once, ours in one process."""
    callers, each = 4, 15
    layout, bundle = make_busybox(base)
    settings = Settings(data_root=str(base / "ours" / "data"), run_root=str(run / "busy"))
    ours: list[float] = []
    theirs: dict[str, list[float]] = {"crun": [], "crun, newest": []}
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(running_peers(base / "peers", run))
        (run / "busy-new").mkdir()
        new = stack.enter_context(running_peers(base / "newest", run / "busy-new", make_newest()))
        with running_registry(base / "registry") as registry:
            reference = registry.push(layout, "busybox", TAG)
            Launch(settings, definition_of(reference))

        def run_ours() -> None:
            with ThreadPoolExecutor(callers) as pool:
                jobs = [
                    pool.submit(Launch, settings, definition_of(reference))
                    for _ in range(callers * each)
                ]
            for job in jobs:
                job.result()

        def run_crun(peers: Peers) -> None:
            bundles = []
            for number in range(callers):
                own = base / f"bundle-{number}"
                shutil.rmtree(own, ignore_errors=True)
                shutil.copytree(bundle, own, symlinks=True)
                write_bundle(own, f"{peers.group}/{number}", [COMMAND])
                bundles.append(own)

            def run_some(number: int) -> None:
                for _ in range(each):
                    timed_ms(["crun", f"--root={peers.run_directory / 'crun'}",
                              "--cgroup-manager=cgroupfs", "run", f"--bundle={bundles[number]}",
                              f"bench-{number}"])  # fmt: skip

            def run_all() -> float:
                # Threads begin in the namespaces of the one that makes them.
                started = time.perf_counter()
                threads = [
                    threading.Thread(target=run_some, args=(number,)) for number in range(callers)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                return callers * each / (time.perf_counter() - started)

            theirs["crun" if peers is old else "crun, newest"].append(peers.call(run_all))

        for _ in range(4):
            started = time.perf_counter()
            run_ours()
            ours.append(callers * each / (time.perf_counter() - started))
            for peers in (old, new):
                run_crun(peers)
    return [
        compare("launches a second, four at once, all removed", "1/s", ours, peer, values,
                "ratio >= 2")
        for peer, values in theirs.items()
    ]  # fmt: skip


def measure_at_once(base: Path, run: Path) -> list[Row]:
    """Many tasks of an image with many layers, all started at once; mounts per task."""
    rows = []
    took: dict[int, list[float]] = {}
    for count in (1, LAYERS):
        settings = Settings(
            data_root=str(base / f"data-{count}"), run_root=str(run / f"many-{count}")
        )
        shutil.rmtree(settings.data_root, ignore_errors=True)
        with running_registry(base / "registry") as registry:
            reference = registry.push(make_layers(base, count), f"layers-{count}", TAG)
            Launch(settings, definition_of(reference))
        before = _count_mounts()
        started = time.perf_counter()
        tasks = [
            fargatelite.run_task(
                definition_of(reference, "/bin/sleep 600"), pull="missing", settings=settings
            )
            for _ in range(AT_ONCE)
        ]
        try:
            for task in tasks:
                task.until("RUNNING", timeout=120)
            took[count] = [(time.perf_counter() - started) * 1000 / AT_ONCE]
            mounts = (_count_mounts() - before) / AT_ONCE
        finally:
            for task in tasks:
                task.stop()
            for task in tasks:
                task.wait(120)
        rows.append(
            state(f"mounts of the host per task, image of {count} layers", "mounts", mounts,
                  "value <= 2")
        )  # fmt: skip
    rows.append(
        compare(f"{AT_ONCE} tasks at once, per task, image of {LAYERS} layers", "ms",
                took[LAYERS], "image of 1 layer", took[1], "ratio <= 1.2")
    )  # fmt: skip
    return rows


def _count_mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


def print_phases(launches: list[Launch]) -> None:
    """Where the last launches' time went."""
    for last, what in zip(launches, ("", ", prepared"), strict=True):
        print(f"  one launch of ours{what}, us: start, length, phase")
        for phase in sorted(last.phases, key=lambda phase: phase.started_us):
            print(f"    {phase.started_us:8} {phase.duration_us:8}  {phase.name}")


def run(rounds: int = ROUNDS) -> list[Row]:
    """The whole benchmark."""
    base = BENCH / "launch"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    print("\nlaunch: `true` from an image in the store, milliseconds since the call")
    with memory_directory() as directory:
        # First: while a sandbox waits prepared, this process guards the table that it takes away.
        bare = measure_bare(base, directory, rounds)
        rows, last = measure_single(base, directory, rounds)
        rows += bare
        rows += measure_throughput(base, directory)
        rows += measure_at_once(base, directory)
    print_phases(last)
    write_results("launch", rows, versions(("crun", "runc", "podman", "bwrap")))
    PLOT.write_text(_plot(rows))
    return rows


def _plot(rows: list[Row]) -> str:
    first = next(row for row in rows if row.name == "container runs")
    ready = next(row for row in rows if row.name == "prepared sandbox: container runs")
    peers = {row.peer: row.peer_value for row in rows if row.name == "container runs"}
    values = [("fargatelite, prepared sandbox", ready.value, True),
              ("fargatelite", first.value, True)]  # fmt: skip
    values += [(str(peer), value or 0.0, False) for peer, value in peers.items()]
    return bars(
        "One container, from the call until it runs (peers: until it has ended)", "ms",
        sorted(values, key=lambda item: item[1]),
    )  # fmt: skip


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
