"""`make bench-density`: many idle tasks on one machine, and many images of one base.

A thousand tasks of one idle container each, started by one process: memory per task all told (what
MemAvailable lost), the kernel's share of it (slab), the supervisor's, the launch time of the last
beside the first, and the removal of all. Then a hundred images of one base: the disk that each
takes, and the page cache once containers have read all files of some. Run as root.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import fargatelite
from benchmarks.images import TAG, make_large, running_registry
from benchmarks.launch import LIMITS, Launch, definition_of, make_layers
from benchmarks.peers import Peers, memory_directory, running_peers
from benchmarks.report import BENCH
from benchmarks.rows import Row, compare, state, versions, write_results
from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.store import ImageStore
from fargatelite.runtime.events import ContainerEvent, Event
from fargatelite.settings import Settings
from tests.fixtures.images import build_oci_layout, tar_layer

TASKS = 1000
SHARED_IMAGES = 100
SAMPLED = 20
READERS = 10
READ = """
import os, sys
device = os.stat("/").st_dev
for top, names, files in os.walk("/"):
    names[:] = [name for name in names if os.lstat(os.path.join(top, name)).st_dev == device]
    for name in files:
        path = os.path.join(top, name)
        if not os.path.islink(path) and os.lstat(path).st_dev == device:
            with open(path, "rb") as file:
                while file.read(1 << 20):
                    pass
print("read", flush=True)
if len(sys.argv) > 1:
    import time
    time.sleep(999)
"""
TIMEOUT_S = 120


def memory_kib() -> dict[str, int]:
    """/proc/meminfo and this process's own resident memory, in KiB."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        found[name] = int(value.split()[0])
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            found["own"] = int(line.split()[1])
    return found


def settle() -> dict[str, int]:
    """Memory once what only caches is gone."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    time.sleep(1)
    return memory_kib()


def launch_idle(settings: Settings, reference: str) -> tuple[fargatelite.Task, float]:
    """A task that runs, and the milliseconds until it did."""
    at_ns: list[int] = []

    def on_event(event: Event) -> None:
        if isinstance(event, ContainerEvent) and event.last_status == "RUNNING":
            at_ns.append(time.perf_counter_ns())

    called_ns = time.perf_counter_ns()
    task = fargatelite.run_task(
        definition_of(reference, "/bin/sleep 100000"), pull="missing", settings=settings,
        on_event=on_event,
    )  # fmt: skip
    task.until("RUNNING", timeout=TIMEOUT_S)
    while not at_ns:  # the callback's thread is behind
        time.sleep(0.001)
    return task, (at_ns[0] - called_ns) / 1e6


def measure_tasks(base: Path, run: Path, count: int) -> list[Row]:
    """`count` idle tasks."""
    settings = Settings(data_root=str(base / "data"), run_root=str(run / "ours"))
    shutil.rmtree(settings.data_root, ignore_errors=True)
    tasks: list[fargatelite.Task] = []
    took_ms: list[float] = []
    with running_registry(base / "registry") as registry:
        reference = registry.push(make_layers(base, 1), "busybox", TAG)
        Launch(settings, definition_of(reference))
    before = settle()
    try:
        for number in range(count):
            task, launch_ms = launch_idle(settings, reference)
            tasks.append(task)
            took_ms.append(launch_ms)
            if (number + 1) % 100 == 0:
                print(f"  {number + 1} tasks, the last in {launch_ms:.1f} ms", flush=True)
        after = settle()
    finally:
        started = time.perf_counter()
        for task in tasks:
            task.stop(wait=False)
        for task in tasks:
            task.wait(TIMEOUT_S)
        removed_s = time.perf_counter() - started
    per_task = {
        name: (before[name] - after[name]) / count / 1024 if name == "MemAvailable"
        else (after[name] - before[name]) / count / 1024
        for name in ("MemAvailable", "Slab", "own", "Percpu")
    }  # fmt: skip
    return [
        state(f"memory per idle task of {count}, all told", "MiB", per_task["MemAvailable"],
              "value <= 2"),
        state("  of it the kernel's slab", "MiB", per_task["Slab"]),
        state("  of it the kernel's per-CPU memory", "MiB", per_task["Percpu"]),
        state("  of it the supervising process", "MiB", per_task["own"]),
        compare(f"launch of the last {SAMPLED} of {count}", "ms", took_ms[-SAMPLED:],
                f"the first {SAMPLED}", took_ms[:SAMPLED], "ratio <= 1.5"),
        state(f"stop and removal of all {count}", "s", removed_s, "value <= 10"),
    ]  # fmt: skip


def disk_mib(path: Path) -> float:
    """What a directory takes on the disk."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for found in path.rglob("*"):
        info = found.lstat()
        if (info.st_dev, info.st_ino) not in seen:
            seen.add((info.st_dev, info.st_ino))
            total += info.st_blocks * 512
    return total / 2**20


def measure_images(base: Path, run: Path, count: int) -> list[Row]:
    """`count` images, each the large one and a layer of 1 MiB of its own."""
    large = make_large(BENCH / "pull")
    shutil.rmtree(base / "shared", ignore_errors=True)
    settings = Settings(data_root=str(base / "shared"), run_root=str(run / "shared"))
    settings.images.parent.mkdir(mode=0o700)
    store = ImageStore(settings.images, config=RegistryConfig())
    references: list[str] = []
    with (
        running_registry(base / "registry") as registry,
        running_peers(base / "peers", run) as peers,
    ):
        try:
            first = registry.push(large, "base", TAG)
            store.pull(first)
            peers.run([*peers.podman(), "pull", "--quiet", "--tls-verify=false", first])
            ours, theirs = disk_mib(base / "shared"), disk_mib(base / "peers")
            for number in range(count):
                own = tar_layer({"opt/own": number.to_bytes(4, "big") * (2**20 // 4)})
                layout = base / "derived"
                shutil.rmtree(layout, ignore_errors=True)
                derive(large, layout, own)
                reference = registry.push(layout, f"derived-{number}", TAG)
                references.append(reference)
                store.pull(reference)
                peers.run([*peers.podman(), "pull", "--quiet", "--tls-verify=false", reference])
            ours = (disk_mib(base / "shared") - ours) / count
            theirs = (disk_mib(base / "peers") - theirs) / count
            readers = min(READERS, count)
            cache = [
                *compare_page_cache(settings, peers, "task", [references[0]] * readers),
                *compare_page_cache(settings, peers, "image", references[:readers]),
            ]
        finally:
            peers.remove_podman()
            shutil.rmtree(base / "shared", ignore_errors=True)
    return [
        compare(f"disk per image of {count} that share a base, 1 MiB of its own", "MiB", [ours],
                "podman", [theirs], "ratio <= 1.1"),
        *cache,
    ]  # fmt: skip


def compare_page_cache(
    settings: Settings, peers: Peers, of_each: str, references: list[str]
) -> list[Row]:
    """What the kernel keeps of files once a container of each image has read all of its own."""
    tasks: list[fargatelite.Task] = []
    before = settle()["Cached"]
    try:
        for reference in references:
            definition = {**definition_of(reference), "cpu": "1024", "memory": "2048"}
            # Alive until all have read: with its last task an image's mount goes, and its cache.
            definition["containerDefinitions"][0]["command"] = ["python3", "-c", READ, "stay"]
            tasks.append(fargatelite.run_task(definition, pull="missing", settings=settings))
            if not any(line.text == b"read" for line in tasks[-1].logs("main", follow=True)):
                raise RuntimeError(f"a reader ended: {tasks[-1].containers['main'].reason}")
        ours = memory_kib()["Cached"] - before
    finally:
        for task in tasks:
            task.stop()
        for task in tasks:
            task.wait(TIMEOUT_S)
    before = settle()["Cached"]
    for reference in references:
        peers.run(
            [*peers.podman(), "run", "--rm", "--network=none", *LIMITS,
             f"--cgroup-parent=/{peers.group}", reference, "python3", "-c", READ]
        )  # fmt: skip
    theirs = memory_kib()["Cached"] - before
    name = f"page cache per {of_each} of {len(references)}, all of its files read"
    return [
        compare(name, "MiB", [ours / len(references) / 1024], "podman",
                [theirs / len(references) / 1024])
    ]  # fmt: skip


def derive(source: Path, target: Path, layer: bytes) -> None:
    """An image of the source's layers and one more, which shares their blobs."""
    build_oci_layout(target, [layer], {"Cmd": ["/bin/true"]}, tag=TAG)
    base, top = _read_manifest(source), _read_manifest(target)
    base_config, top_config = (
        json.loads(_blob(path, manifest["config"]).read_text())
        for path, manifest in ((source, base), (target, top))
    )
    for item in base["layers"]:
        os.link(_blob(source, item), _blob(target, item))
    top["layers"] = base["layers"] + top["layers"]
    top_config["rootfs"]["diff_ids"] = (
        base_config["rootfs"]["diff_ids"] + top_config["rootfs"]["diff_ids"]
    )
    top["config"] |= _put(target, top_config)
    index = json.loads((target / "index.json").read_text())
    index["manifests"][0] |= _put(target, top)
    (target / "index.json").write_text(json.dumps(index))


def _blob(layout: Path, described: dict[str, Any]) -> Path:
    return layout / "blobs" / "sha256" / described["digest"].removeprefix("sha256:")


def _read_manifest(layout: Path) -> dict[str, Any]:
    (described,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest: dict[str, Any] = json.loads(_blob(layout, described).read_text())
    return manifest


def _put(layout: Path, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    described = {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}
    _blob(layout, described).write_bytes(data)
    return described


def run(count: int = TASKS) -> list[Row]:
    """The whole benchmark."""
    base = BENCH / "density"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(count, (hard - 1100) // 27)
    print(f"\ndensity: {count} idle tasks of one process")
    with memory_directory() as directory:
        rows = measure_tasks(base, directory, count)
        rows += measure_images(base, directory, SHARED_IMAGES if count > 500 else 3)
    write_results("density", rows, versions(("podman",)))
    return rows


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else TASKS)
