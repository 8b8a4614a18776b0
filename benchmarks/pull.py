"""How long does the first pull of a large image take, from a registry on loopback?

Ours into an empty store beside `podman pull` into an empty root: each must check the digest, unpack
and store all files. The bare limit takes the same bytes through the same registry: download, hash,
inflate, hash again, write one file, nothing parsed, nothing synced.
Run as root.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import urllib.request
from pathlib import Path

from images import TAG, describe_layer, make_large, running_registry
from isal import isal_zlib
from peers import Peers, running_peers
from report import BENCH, Table

from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.store import ImageStore

ROUNDS = 5
CHUNK_BYTES = 1 << 20
GZIP_WINDOW = 31


def pull_ours(root: Path, reference: str) -> float:
    """Seconds of a pull into an empty store."""
    store = ImageStore(root, config=RegistryConfig())
    started_ns = time.perf_counter_ns()
    store.pull(reference)
    return (time.perf_counter_ns() - started_ns) / 1e9


def pull_podman(peers: Peers, reference: str) -> float:
    """Seconds of `podman pull` into an empty root."""
    return peers.run([*peers.podman(), "pull", "--quiet", "--tls-verify=false", reference]) / 1000


def pull_bare(layout: Path, host: str, name: str, target: Path) -> float:
    """Seconds for the bytes alone, on one thread."""
    blobs = layout / "blobs" / "sha256"
    digest = max(blobs.iterdir(), key=lambda path: path.stat().st_size).name
    started_ns = time.perf_counter_ns()
    compressed, content = hashlib.sha256(), hashlib.sha256()
    inflater = isal_zlib.decompressobj(GZIP_WINDOW)
    url = f"http://{host}/v2/{name}/blobs/sha256:{digest}"
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
    ours: list[float] = []
    podman: list[float] = []
    bare: list[float] = []
    store, target = base / "store", base / "bare"

    def empty() -> None:
        shutil.rmtree(store, ignore_errors=True)
        target.unlink(missing_ok=True)
        os.sync()  # nobody pays for writing back what another one left

    with running_registry(base / "registry") as registry:
        reference = registry.push(layout, "large", TAG)

        def one_ours() -> None:
            empty()
            ours.append(pull_ours(store, reference))

        def one_podman() -> None:
            empty()
            podman.append(pull_podman(peers, reference))
            peers.remove_podman()

        def one_bare() -> None:
            empty()
            bare.append(pull_bare(layout, registry.host, "large", target))

        contestants = [one_ours, one_podman, one_bare]
        for work in contestants:
            work()
        for values in (ours, podman, bare):
            values.clear()
        for index in range(rounds):
            for offset in range(len(contestants)):
                contestants[(index + offset) % len(contestants)]()
        empty()
    table.add("cold pull / podman pull", ours, podman, bare)


def run(rounds: int = ROUNDS) -> Table:
    """The whole benchmark; prints its table."""
    table = Table("pull", "s")
    base = BENCH / "pull"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    layout = make_large(base)
    with running_peers(base / "peers") as peers:
        table.start(f"one gzip layer, {describe_layer(layout)}")
        try:
            measure(table, peers, base, layout, rounds)
        finally:
            peers.remove_podman()
    return table


if __name__ == "__main__":
    run()
