"""What the contestants run and pull: a busybox image and a large one, in a registry on loopback.

The large image is made once from Debian packages and kept: one gzip layer (as `docker push` would
make it), 88 MB compressed, 245 MB unpacked, 11,266 entries in November 2026.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tests.fixtures.images import (
    RunningRegistry,
    _await_port,
    build_oci_layout,
    busybox_files,
    free_port,
    tar_layer,
)

PACKAGES = "python3,python3-pip,python3-setuptools,perl,git,vim,nginx,ca-certificates,tzdata"
TAG = "1"


@contextlib.contextmanager
def running_registry(directory: Path) -> Iterator[RunningRegistry]:
    """Debian's docker-registry with its storage in `directory`, until the block ends."""
    program = shutil.which("docker-registry")
    if program is None:
        raise RuntimeError("docker-registry is missing: apt-get install docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (directory / "config.yml").write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f'storage: {{filesystem: {{rootdirectory: "{directory / "data"}"}}}}\n'
        f'http: {{addr: "127.0.0.1:{port}"}}\n'
    )
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [program, "serve", directory / "config.yml"], stderr=log, stdout=log
        )
    try:
        _await_port(port, process)
        yield RunningRegistry(f"127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)


def make_busybox(directory: Path) -> tuple[Path, Path]:
    """An OCI layout of busybox that runs `true`, and a bundle directory with the same `rootfs`."""
    layout, bundle = directory / "busybox", directory / "bundle"
    for old in (layout, bundle):
        shutil.rmtree(old, ignore_errors=True)
    layer = tar_layer(busybox_files())
    build_oci_layout(layout, [layer], {"Cmd": ["/bin/true"]}, tag=TAG)
    (bundle / "rootfs").mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        archive.extractall(bundle / "rootfs")
    return layout, bundle


def make_large(directory: Path) -> Path:
    """The OCI layout of the large image, made at the first call (30 s and 90 MB from a mirror)."""
    layout, archive = directory / "large", directory / "large.tar"
    if (layout / "index.json").exists():
        return layout
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if not sources.exists():
        sources = Path("/etc/apt/sources.list")
    subprocess.run(
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract",
         f"--include={PACKAGES}", "bookworm", archive, sources],
        check=True, timeout=900,
    )  # fmt: skip
    scratch = directory / "large.new"
    shutil.rmtree(scratch, ignore_errors=True)
    build_oci_layout(scratch, [archive.read_bytes()], {"Cmd": ["/bin/true"]}, tag=TAG)
    shutil.rmtree(layout, ignore_errors=True)
    scratch.rename(layout)
    archive.unlink()
    return layout


def describe_layer(layout: Path) -> str:
    """Megabytes and entries of a layout's one layer."""
    blobs = sorted((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    entries = unpacked = 0
    with tarfile.open(blobs[-1], mode="r|gz") as archive:
        for member in archive:
            entries += 1
            unpacked += member.size
    return (
        f"{blobs[-1].stat().st_size / 1e6:.0f} MB compressed, {unpacked / 1e6:.0f} MB, "
        f"{entries} entries"
    )
