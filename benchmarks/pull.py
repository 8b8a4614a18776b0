"""`make bench-pull`: how long does the first pull of an image take, from a registry on loopback?

Images of some 90 and 500 MB compressed, in one layer and in eight, gzip and zstd. Ours into an
empty store beside `podman pull`, `skopeo copy` with `umoci unpack`, and containerd's `ctr images
pull` with its snapshots: each checks digests and stores all files. The bare limit takes the same
bytes through the same registry with the same libraries, a thread per layer: download, hash,
decompress, hash again, write one file; nothing parsed, nothing synced.

All that is pulled stays until the end of a case: ext4 passes by inodes that were deleted in the
last minutes (`recently_deleted`, RECENTCY_DIRTY is 300 s), and podman, which makes 11,000 of them,
took 11 s instead of 3 when each round was removed before the next. Run as root.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zstandard
from isal import isal_zlib

from benchmarks.images import TAG, describe_layer, make_large, running_registry
from benchmarks.peers import Peers, memory_directory, running_peers
from benchmarks.report import BENCH
from benchmarks.rows import Row, bars, compare, state, versions, write_results
from tests.fixtures.images import build_oci_layout, tar_layer

ROUNDS = 3
CHUNK_BYTES = 1 << 20
GZIP_WINDOW = 31
LARGE_MB = 500
PLOT = Path(__file__).parent.parent / "docs" / "pull.svg"

# A process of its own, so that its peak memory is that of a pull.
PULL = """
import resource, sys, time
from pathlib import Path
from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.store import ImageStore
store = ImageStore(Path(sys.argv[1]), config=RegistryConfig())
started = time.perf_counter()
store.pull(sys.argv[2])
took = time.perf_counter() - started
# ru_maxrss of the process itself would be that of who started it.
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]
print(took, max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


def pull_ours(root: Path, reference: str) -> tuple[float, float]:
    """Seconds of a pull into an empty store, and the larger of the peak memories of the process and
    of its workers in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PULL, root, reference],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    took, peak_kib = done.stdout.split()
    return float(took), int(peak_kib) / 1024


def pull_podman(peers: Peers, root: str, reference: str) -> float:
    """Seconds of `podman pull` into an empty root."""
    command = [*peers.podman(root), "pull", "--quiet", "--tls-verify=false", reference]
    return peers.run(command) / 1000


def pull_umoci(directory: Path, reference: str) -> float:
    """Seconds of `skopeo copy` into a layout and `umoci unpack`."""
    directory.mkdir()
    layout = f"{directory}/layout:{TAG}"
    started = time.perf_counter()
    for command in (
        ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
         f"docker://{reference}", f"oci:{layout}"],
        ["umoci", "unpack", "--image", layout, f"{directory}/bundle"],
    ):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=600)
    return time.perf_counter() - started


@contextlib.contextmanager
def running_containerd(directory: Path) -> Iterator[list[str]]:
    """A containerd with all its state in `directory`; the `ctr` command that talks to it."""
    directory.mkdir(parents=True)
    socket = directory / "s"
    config = directory / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\naddress = "{socket}"\n'
    )
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(["containerd", "--config", config], stdout=log, stderr=log)
    try:
        ctr = ["ctr", f"--address={socket}"]
        deadline = time.monotonic() + 30
        while subprocess.run([*ctr, "version"], capture_output=True).returncode:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"containerd: {(directory / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        yield ctr
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


def pull_ctr(directory: Path, reference: str) -> float:
    """Seconds of `ctr images pull`, unpacked; the daemon runs before."""
    with running_containerd(directory) as ctr:
        started = time.perf_counter()
        subprocess.run(
            [*ctr, "images", "pull", "--plain-http", reference],
            check=True, capture_output=True, timeout=600,
        )  # fmt: skip
        return time.perf_counter() - started


def pull_bare(layout: Path, host: str, name: str, directory: Path) -> float:
    """Seconds for the bytes alone."""
    directory.mkdir()
    manifest = _read_manifest(layout)

    def take(layer: dict[str, str]) -> None:
        compressed, content = hashlib.sha256(), hashlib.sha256()
        unpacker = (
            zstandard.ZstdDecompressor().decompressobj()
            if layer["mediaType"].endswith("zstd")
            else isal_zlib.decompressobj(GZIP_WINDOW)
        )
        url = f"http://{host}/v2/{name}/blobs/{layer['digest']}"
        with (
            urllib.request.urlopen(url) as response,
            open(directory / layer["digest"][7:], "wb") as file,
        ):
            while chunk := response.read(CHUNK_BYTES):
                compressed.update(chunk)
                data = unpacker.decompress(chunk)
                content.update(data)
                file.write(data)
        if f"sha256:{compressed.hexdigest()}" != layer["digest"]:
            raise RuntimeError(f"{url} has another digest")

    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(take, manifest["layers"]))
    return time.perf_counter() - started


def _read_manifest(layout: Path) -> dict[str, list[dict[str, str]]]:
    (described,) = json.loads((layout / "index.json").read_text())["manifests"]
    digest = described["digest"].removeprefix("sha256:")
    manifest: dict[str, list[dict[str, str]]] = json.loads(
        (layout / "blobs" / "sha256" / digest).read_text()
    )
    return manifest


def make_case(base: Path, megabytes: int, layers: int, compression: str) -> Path:
    """An image of about that many compressed megabytes: the large image's files, and for more, data
    that compresses by half; made once and kept."""
    layout = base / f"case-{megabytes}-{layers}-{compression}"
    if (layout / "index.json").exists():
        return layout
    large = make_large(base)
    blobs = large / "blobs" / "sha256"
    packed = max(blobs.iterdir(), key=lambda path: path.stat().st_size).read_bytes()
    content = isal_zlib.decompress(packed, GZIP_WINDOW)
    tars = _split(content, layers)
    missing = max(0, megabytes - len(packed) // 10**6)
    for index in range(layers):
        if missing:
            tars[index] = _with_data(tars[index], index, missing * 10**6 // layers)
    scratch = base / "case.new"
    shutil.rmtree(scratch, ignore_errors=True)
    build_oci_layout(scratch, tars, {"Cmd": ["/bin/true"]}, tag=TAG, compression=compression)
    scratch.rename(layout)
    return layout


def _split(content: bytes, count: int) -> list[bytes]:
    """A tar in `count` tars of about the same size."""
    parts: list[list[tuple[tarfile.TarInfo, bytes]]] = [[]]
    taken = 0
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() or member.islnk() else None
            data = file.read() if file is not None else b""
            if member.islnk():  # its file may lie in another layer: a copy stands for it
                member.size, member.type, member.linkname = len(data), tarfile.REGTYPE, ""
            parts[-1].append((member, data))
            taken += len(data)
            if taken > len(content) / count * len(parts) and len(parts) < count:
                parts.append([])
    tars = []
    for part in parts:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as target:
            for member, data in part:
                target.addfile(member, io.BytesIO(data))
        tars.append(buffer.getvalue())
    return tars


def _with_data(tar: bytes, number: int, compressed_bytes: int) -> bytes:
    """A tar with more files of 4 MiB, half of each random."""
    files = {
        f"opt/data/{number}-{index}": os.urandom(2 << 20) + bytes(2 << 20)
        for index in range(max(1, compressed_bytes // (2 << 20)))
    }
    end = len(tar)  # zero blocks end an archive; what follows takes their place
    while end >= 512 and not any(tar[end - 512 : end]):
        end -= 512
    return tar[:end] + tar_layer(files)


def measure(
    peers: Peers, base: Path, layout: Path, label: str, rounds: int, *, everybody: bool
) -> tuple[list[Row], dict[str, float]]:
    """One image beside everybody, or beside podman and the bare limit."""
    took: dict[str, list[float]] = {}
    peaks: list[float] = []
    new = base / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    with running_registry(base / "registry") as registry:
        reference = registry.push(layout, "case", TAG)

        def ours(name: str) -> float:
            seconds, peak = pull_ours(new / f"store-{name}", reference)
            peaks.append(peak)
            return seconds

        contestants: dict[str, Callable[[str], float]] = {
            "ours": ours,
            "podman": lambda name: pull_podman(peers, name, reference),
            "bare": lambda name: pull_bare(layout, registry.host, "case", new / f"bare-{name}"),
        }
        if everybody:
            contestants["skopeo + umoci"] = lambda name: pull_umoci(
                new / f"umoci-{name}", reference
            )
            contestants["ctr"] = lambda name: pull_ctr(new / f"ctr-{name}", reference)
        order = list(contestants)
        try:
            for index in range(rounds):
                first = index % len(order)
                for name in order[first:] + order[:first]:
                    os.sync()  # nobody pays for writing back what another one left
                    took.setdefault(name, []).append(contestants[name](str(index)))
        finally:
            for index in range(rounds):
                peers.remove_podman(str(index))
            shutil.rmtree(new, ignore_errors=True)
    goals = {"podman": "ratio <= 0.25", "skopeo + umoci": "ratio <= 0.333", "ctr": "ratio <= 1",
             "bare": "ratio <= 1.5"}  # fmt: skip
    rows = [
        compare(f"pull {label}", "s", took["ours"], name, took[name], goal)
        for name, goal in goals.items()
        if name in took
    ]
    rows.append(state(f"pull {label}: peak memory", "MiB", max(peaks), "value <= 150"))
    return rows, {name: sorted(values)[len(values) // 2] for name, values in took.items()}


def run(rounds: int = ROUNDS) -> list[Row]:
    """The whole benchmark."""
    base = BENCH / "pull"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    large = make_large(base)
    print(
        f"\npull from a registry on loopback, seconds; the smaller image: {describe_layer(large)}"
    )
    rows: list[Row] = []
    shown: dict[str, float] = {}
    with memory_directory() as directory, running_peers(base / "peers", directory) as peers:
        for megabytes, layers, compression in (
            (90, 1, "gzip"), (90, 8, "gzip"), (90, 8, "zstd"), (LARGE_MB, 1, "gzip"),
            (LARGE_MB, 8, "gzip"),
        ):  # fmt: skip
            layout = make_case(base, megabytes, layers, compression)
            label = f"{megabytes} MB, {layers} {compression} layer{'s' if layers > 1 else ''}"
            # umoci 0.4 and containerd 1.6 know no zstd layer as OCI writes it.
            more, medians = measure(
                peers, base, layout, label, rounds,
                everybody=compression == "gzip" and megabytes < LARGE_MB,
            )  # fmt: skip
            rows += more
            shown = shown or medians
    write_results("pull", rows, versions(("podman", "skopeo", "umoci", "containerd")))
    PLOT.write_text(
        bars("First pull of an image of 90 MB in one layer", "s",
             [("fargatelite" if name == "ours" else name, value, name == "ours")
              for name, value in sorted(shown.items(), key=lambda item: item[1])])
    )  # fmt: skip
    return rows


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    run(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
