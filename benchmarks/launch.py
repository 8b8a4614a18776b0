"""How long does one container take, from the call until it runs, has ended, is gone?

`true` of busybox, from an image that is in the store. Ours by the API in this process, and by the
command line as a process of its own; crun with a bundle of the same files (no network, no image, no
log, no meter, no user namespace: it does less); podman with the same image, `--network none`.
What all of them keep in /run lies in a tmpfs, as /run is one.
The bare limit is unshare(1) with the same kinds of namespaces and the same program.
Run as root.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from images import TAG, make_busybox, running_registry
from peers import Peers, memory_directory, running_peers, timed_ms, write_bundle
from report import BENCH, Table

import fargatelite
from fargatelite.runtime.events import ContainerEvent, Event
from fargatelite.settings import Settings

ROUNDS = 100
WARM_UP = 5
COMMAND = "/bin/true"


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


def definition_of(reference: str) -> dict[str, object]:
    """The smallest task."""
    return {
        "family": "bench",
        "requiresCompatibilities": ["FARGATE"],
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [
            {"name": "main", "image": reference, "command": [COMMAND], "essential": True}
        ],
    }


def peer_commands(peers: Peers, bundle: Path, reference: str) -> dict[str, list[str]]:
    """The commands of all peers by name."""
    write_bundle(bundle, peers.group, [COMMAND])
    crun = ["crun", f"--root={peers.run_directory / 'crun'}", "--cgroup-manager=cgroupfs"]
    podman = [
        *peers.podman(), "run", "--rm", "--network=none",
        # Its defaults raise limits, which needs CAP_SYS_RESOURCE.
        "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024",
    ]  # fmt: skip
    return {
        "crun run": [*crun, "run", f"--bundle={bundle}", "bench"],
        "podman run": [*podman, f"--cgroup-parent=/{peers.group}", reference, COMMAND],
        "podman run, no cgroup": [*podman, "--cgroups=disabled", reference, COMMAND],
        "unshare": [
            "unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--net", "--ipc",
            "--uts", "--cgroup", f"--root={bundle / 'rootfs'}", COMMAND,
        ],
    }  # fmt: skip


def measure(table: Table, peers: Peers, base: Path, rounds: int) -> tuple[Launch, Launch]:
    """Fills the table; returns the last launches, without and with a prepared sandbox, whose phases
    tell where time goes."""
    layout, bundle = make_busybox(base)
    shutil.rmtree(base / "ours", ignore_errors=True)
    settings = Settings(
        data_root=str(base / "ours" / "data"), run_root=str(peers.run_directory / "ours")
    )
    with running_registry(base / "registry") as registry:
        reference = registry.push(layout, "busybox", TAG)
        definition = definition_of(reference)
        Launch(settings, definition)
        peers.run([*peers.podman(), "pull", "--quiet", "--tls-verify=false", reference])
    # The registry is gone: from here on nobody can ask it.
    definition_path = base / "definition.json"
    definition_path.write_text(json.dumps(definition))
    cli = [
        sys.executable, "-m", "fargatelite", "--data-root", settings.data_root,
        "--run-root", settings.run_root, "run", "--pull", "missing", str(definition_path),
    ]  # fmt: skip

    ready = msgspec.structs.replace(settings, prepared_sandboxes=1)

    def launch_prepared() -> None:
        if not fargatelite.prepare_sandboxes(ready, timeout_s=10):
            raise RuntimeError("no sandbox prepared")
        prepared.append(Launch(ready, definition))

    launches: list[Launch] = []
    prepared: list[Launch] = []
    took_ms: dict[str, list[float]] = {"cli": []}
    contestants: dict[str, Callable[[], None]] = {
        "api": lambda: launches.append(Launch(settings, definition)),
        "api, prepared": launch_prepared,
        "cli": lambda: took_ms["cli"].append(timed_ms(cli)),
    }
    failed: dict[str, str] = {}
    for name, command in peer_commands(peers, bundle, reference).items():
        try:
            peers.run(command)
        except RuntimeError as error:
            failed[name] = str(error)
            continue
        took_ms[name] = []
        contestants[name] = lambda name=name, command=command: took_ms[name].append(  # type: ignore[misc]
            peers.run(command)
        )
    for work in rotated(contestants, WARM_UP):
        work()
    launches.clear()
    prepared.clear()
    for values in took_ms.values():
        values.clear()
    for work in rotated(contestants, rounds):
        work()

    bare = took_ms.get("unshare")
    prepared_started = [launch.started_ms for launch in prepared]
    prepared_exited = [launch.exited_ms for launch in prepared]
    started = [launch.started_ms for launch in launches]
    exited = [launch.exited_ms for launch in launches]
    removed = [launch.removed_ms for launch in launches]
    rows = (
        ("API, process started / all of crun run", started, "crun run", bare),
        ("prepared, process started / all of crun run", prepared_started, "crun run", bare),
        ("prepared, exit known / all of crun run", prepared_exited, "crun run", bare),
        ("API, exit known / all of crun run", exited, "crun run", bare),
        ("API, all removed / all of crun run", removed, "crun run", bare),
        ("API, all removed / podman run", removed, "podman run", bare),
        ("command line / podman run", took_ms["cli"], "podman run", bare),
        ("command line / podman run, no cgroup", took_ms["cli"], "podman run, no cgroup", bare),
    )
    for question, ours, peer, limit in rows:
        if peer in took_ms:
            table.add(question, ours, took_ms[peer], limit)
        else:
            table.missing(question, failed[peer])
    return launches[-1], prepared[-1]


def rotated(
    contestants: dict[str, Callable[[], None]], rounds: int
) -> Iterator[Callable[[], None]]:
    """All contestants once a round, each round beginning with the next one."""
    works = list(contestants.values())
    for index in range(rounds):
        first = index % len(works)
        yield from works[first:] + works[:first]


def run(rounds: int = ROUNDS) -> Table:
    """The whole benchmark; prints its table."""
    table = Table("launch", "ms")
    base = BENCH / "launch"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    with memory_directory() as run, running_peers(base / "peers", run) as peers:
        try:
            table.start("`true` from an image in the store")
            both = measure(table, peers, base, rounds)
        finally:
            peers.remove_podman()
    for last, what in zip(both, ("", ", prepared"), strict=True):
        print(f"  one launch of ours{what}, us: start, length, phase")
        for phase in sorted(last.phases, key=lambda phase: phase.started_us):
            print(f"    {phase.started_us:8} {phase.duration_us:8}  {phase.name}")
    return table


if __name__ == "__main__":
    run()
