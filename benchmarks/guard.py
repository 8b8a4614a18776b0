"""`make bench-guard`: the figures that must not get twice as bad unseen; part of `make ci`.

Ratios against contestants that run in the same minute, with room for a busy machine; no absolute
times. A goal of a benchmark is stricter than its bound here. Run as root.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
import zlib
from pathlib import Path

from benchmarks.images import TAG, make_busybox, running_registry
from benchmarks.launch import Launch, definition_of, oci_commands
from benchmarks.meter import Fleet, per_round_ns
from benchmarks.peers import memory_directory, running_peers
from benchmarks.report import BENCH
from benchmarks.rows import Row, compare
from fargatelite.cgroups.detect import detect_driver
from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.store import ImageStore
from fargatelite.meter.sampler import Sampler
from fargatelite.settings import Settings
from tests.fixtures.images import build_oci_layout, tar_layer

ROUNDS = 15
SMALL_FILES, LARGE_BYTES = 2000, 24 << 20


def guard_launch(base: Path, run: Path) -> Row:
    """A launch beside `crun run`."""
    layout, bundle = make_busybox(base)
    shutil.rmtree(base / "data", ignore_errors=True)
    settings = Settings(data_root=str(base / "data"), run_root=str(run / "ours"))
    ours: list[float] = []
    theirs: list[float] = []
    with running_peers(base / "peers", run) as peers:
        with running_registry(base / "registry") as registry:
            definition = definition_of(registry.push(layout, "busybox", TAG))
            Launch(settings, definition)
        command = oci_commands(peers, bundle, ("crun",))["crun"]
        for _ in range(ROUNDS + 2):
            ours.append(Launch(settings, definition).started_ms)
            theirs.append(peers.run(command))
    return compare("container runs", "ms", ours[2:], "crun run", theirs[2:], "ratio <= 2.5")


def guard_meter(base: Path) -> Row:
    """A sample beside the bare preads."""
    with tempfile.TemporaryDirectory(dir=base) as directory:
        fleet = Fleet(detect_driver(), Path(directory), Sampler(slow_every_s=0))
        try:
            fleet.grow(50)
            pairs = [
                (
                    per_round_ns(fleet.sampler.run_sweeps, 40),
                    per_round_ns(fleet.sampler.run_reads, 40),
                )
                for _ in range(ROUNDS + 5)
            ][5:]
        finally:
            fleet.remove()
    ours, bare = ([value / 50 / 1000 for value in values] for values in zip(*pairs, strict=True))
    return compare("sample of a group", "us", ours, "bare C loop", bare, "ratio <= 2.5")


def run_meter(_: int) -> list[Row]:
    """A tick in `make bench`; `make bench-meter` has all that there is to say of it."""
    print("\nmeter: a tick, by group; make bench-meter says more")
    BENCH.mkdir(parents=True, exist_ok=True)
    return [guard_meter(BENCH)]


def guard_pull(base: Path) -> Row:
    """A pull beside the same bytes read, inflated and hashed by Python's zlib, from a file."""
    files: dict[str, bytes] = {f"usr/{n // 50}/{n}": b"%d\n" % n * 40 for n in range(SMALL_FILES)}
    half = os.urandom(LARGE_BYTES // 2)
    files["opt/large"] = half + bytes(LARGE_BYTES // 2)
    layout = base / "layout"
    shutil.rmtree(layout, ignore_errors=True)
    build_oci_layout(layout, [tar_layer(files)], {"Cmd": ["/bin/true"]}, tag=TAG)
    blob = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    ours: list[float] = []
    bare: list[float] = []
    with running_registry(base / "registry") as registry:
        reference = registry.push(layout, "guard", TAG)
        for number in range(5):
            store = base / f"store-{number}"
            shutil.rmtree(store, ignore_errors=True)
            started = time.perf_counter()
            ImageStore(store, config=RegistryConfig()).pull(reference)
            ours.append(time.perf_counter() - started)
            started = time.perf_counter()
            packed = blob.read_bytes()
            hashlib.sha256(packed).digest()
            hashlib.sha256(zlib.decompress(packed, 31)).digest()
            bare.append(time.perf_counter() - started)
            shutil.rmtree(store)
    return compare("pull", "s", ours[1:], "bytes alone", bare[1:], "ratio <= 8")


def main() -> None:
    """Ends with 1 when a bound is exceeded."""
    base = BENCH / "guard"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    print("guard: ratios that must not get out of hand")
    with memory_directory() as run:
        rows = [guard_launch(base, run), guard_meter(base), guard_pull(base)]
    if not all(row.met for row in rows):
        sys.exit("guard: a ratio is out of its bound; make bench says more")
    print(f"guard: {len(rows)} ratios within their bounds")


if __name__ == "__main__":
    main()
