"""How long does the first pull of a large image take, from a registry on loopback?

Ours into an empty store beside `podman pull` into an empty root: each must check the digest, unpack
and store all files. The bare limit takes the same bytes through the same registry: download, hash,
inflate, hash again, write one file, nothing parsed, nothing synced.

All that is pulled stays until the end of the run: ext4 passes by inodes that were deleted in the
last minutes (`recently_deleted`, RECENTCY_DIRTY is 300 s), and podman, which makes 11,000 of them,
took 11 s instead of 3 when each round was removed before the next. A run soon after another suffers
from that, and says so.
Run as root.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from isal import isal_zlib

from benchmarks.images import TAG, describe_layer, make_large, running_registry
from benchmarks.peers import Peers, memory_directory, running_peers
from benchmarks.report import BENCH, Table
from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.store import ImageStore

ROUNDS = 5
CHUNK_BYTES = 1 << 20
GZIP_WINDOW = 31
RECENTLY_S = 300


def pull_ours(root: Path, reference: str) -> float:
    """Seconds of a pull into an empty store."""
    store = ImageStore(root, config=RegistryConfig())
    started_ns = time.perf_counter_ns()
    store.pull(reference)
    return (time.perf_counter_ns() - started_ns) / 1e9


def pull_podman(peers: Peers, root: str, reference: str) -> float:
    """Seconds of `podman pull` into an empty root."""
    command = [*peers.podman(root), "pull", "--quiet", "--tls-verify=false", reference]
    return peers.run(command) / 1000


def pull_bare(layout: Path, host: str, target: Path) -> float:
    """Seconds for the bytes alone, on one thread."""
    blobs = layout / "blobs" / "sha256"
    digest = max(blobs.iterdir(), key=lambda path: path.stat().st_size).name
    started_ns = time.perf_counter_ns()
    compressed, content = hashlib.sha256(), hashlib.sha256()
    inflater = isal_zlib.decompressobj(GZIP_WINDOW)
    url = f"http://{host}/v2/large/blobs/sha256:{digest}"
    with urllib.request.urlopen(url) as response, open(target, "wb") as file:
        while chunk := response.read(CHUNK_BYTES):
            compressed.update(chunk)
            data = inflater.decompress(chunk)
            content.update(data)
            file.write(data)
    if compressed.hexdigest() != digest:
        raise RuntimeError(f"{url} has another digest")
    return (time.perf_counter_ns() - started_ns) / 1e9


def measure(table: Table, peers: Peers, base: Path, layout: Path, rounds: int) -> None:
    """Fills the table."""
    seconds: dict[str, list[float]] = {"ours": [], "podman": [], "bare": []}
    with running_registry(base / "registry") as registry:
        reference = registry.push(layout, "large", TAG)
        contestants: dict[str, Callable[[str], float]] = {
            "ours": lambda name: pull_ours(base / "new" / f"store-{name}", reference),
            "podman": lambda name: pull_podman(peers, name, reference),
            "bare": lambda name: pull_bare(layout, registry.host, base / "new" / f"bare-{name}"),
        }
        order = list(contestants)
        try:
            for index in range(-1, rounds):  # the first is the warm-up
                first = index % len(order)
                for name in order[first:] + order[:first]:
                    os.sync()  # nobody pays for writing back what another one left
                    took_s = contestants[name](str(index))
                    if index >= 0:
                        seconds[name].append(took_s)
        finally:
            for index in range(-1, rounds):
                peers.remove_podman(str(index))
            shutil.rmtree(base / "new", ignore_errors=True)
            (base / "emptied").touch()
    table.add("cold pull / podman pull", seconds["ours"], seconds["podman"], seconds["bare"])


def run(rounds: int = ROUNDS) -> Table:
    """The whole benchmark; prints its table."""
    table = Table("pull", "s")
    base = BENCH / "pull"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    layout = make_large(base)
    with memory_directory() as run, running_peers(base / "peers", run) as peers:
        emptied = base / "emptied"
        age_s = time.time() - emptied.stat().st_mtime if emptied.exists() else RECENTLY_S
        table.start(f"one gzip layer, {describe_layer(layout)}")
        if age_s < RECENTLY_S:
            print(f"  the last run was {age_s:.0f} s ago: on ext4 podman is slower than usual")
        (base / "new").mkdir(exist_ok=True)
        measure(table, peers, base, layout, rounds)
    return table


if __name__ == "__main__":
    run()
