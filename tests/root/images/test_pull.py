"""Pull, load, remove and gc against Debian's docker-registry and skopeo."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3

from fargatelite.errors import (
    DigestMismatch,
    ImageError,
    ImageInvalid,
    ImageNotFound,
    StateCorrupt,
)
from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.image import PullProgress
from fargatelite.images.reference import parse_reference
from fargatelite.images.registry import Registry
from fargatelite.images.store import ImageStore
from fargatelite.images.worker import fetch_image
from tests.fixtures.images import RunningRegistry, build_oci_layout, tar_layer
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry]

BASE = tar_layer({"etc/passwd": b"root:x:0:0::/:/bin/sh\n", "base": b"b" * 50_000})


class _Counting(BaseHTTPRequestHandler):
    """Passes each request on to the registry, and counts them by method and path."""

    protocol_version = "HTTP/1.1"
    counts: Counter[str]
    upstream: str

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self.counts[f"{self.command} {self.path}"] += 1
        headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
        answer = urllib3.request(
            self.command, f"http://{self.upstream}{self.path}", headers=headers, redirect=False
        )
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("date", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.data)

    do_HEAD = do_GET


class _Proxy:
    def __init__(self, host: str, counts: Counter[str]) -> None:
        self.host, self.counts = host, counts

    def count(self, method: str, part: str) -> int:
        """How many requests of this method had `part` in their path."""
        return sum(
            number
            for key, number in self.counts.items()
            if key.startswith(method + " ") and part in key
        )


@pytest.fixture
def proxy(registry: RunningRegistry) -> Iterator[_Proxy]:
    counts: Counter[str] = Counter()
    handler = type("Handler", (_Counting,), {"counts": counts, "upstream": registry.host})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield _Proxy(f"127.0.0.1:{server.server_port}", counts)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    (tmp_path / "docker.json").write_text("{}")
    config = RegistryConfig(docker_config=str(tmp_path / "docker.json"))
    return ImageStore(tmp_path / "data", config=config)


def _push(
    registry: RunningRegistry, path: Path, text: str, *, compression: str = "gzip", tag: str = "1"
) -> Path:
    """Pushes an image of the base and a layer with `text`, named after the test's directory."""
    layout = build_oci_layout(
        path, [BASE, tar_layer({"text": text.encode()})], {"Cmd": [text]}, compression=compression,
        tag=tag,
    )  # fmt: skip
    registry.push(layout, _name(path), tag)
    return layout


def _name(path: Path) -> str:
    return "pull/" + hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:16]


def _names(store: ImageStore, kind: str) -> set[str]:
    return {path.name for path in (store.root / kind).iterdir()}


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_pull(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path, compression: str
) -> None:
    layout = _push(registry, tmp_path / "layout", "one", compression=compression)
    seen: list[PullProgress] = []
    image = store.pull(f"{registry.host}/{_name(layout)}:1", on_progress=seen.append)
    assert image.config.cmd == ("one",)
    assert image.passwd == b"root:x:0:0::/:/bin/sh\n"
    assert image.diff_ids[0] == "sha256:" + hashlib.sha256(BASE).hexdigest()
    index = json.loads((layout / "index.json").read_text())
    if compression != "none":  # skopeo compresses what is not
        assert image.digest == index["manifests"][0]["digest"]
    assert {item.phase for item in seen} == {"download", "done", "image"}
    done = [item for item in seen if item.phase == "done"]
    assert all(item.done_bytes == item.total_bytes for item in done)
    assert sum(item.total_bytes for item in done) == image.compressed_bytes
    assert store.list_images() == [image]
    assert _names(store, "tmp") == set()


def test_pull_policies(
    registry: RunningRegistry, proxy: _Proxy, store: ImageStore, tmp_path: Path
) -> None:
    reference = f"{proxy.host}/{_name(tmp_path / 'x')}:1"
    with pytest.raises(ImageNotFound, match="not in the store, and the pull policy is never"):
        store.pull(reference, policy="never")
    assert not proxy.counts
    _push(registry, tmp_path / "one", "one")
    first = store.pull(reference, policy="missing")
    assert first.config.cmd == ("one",)
    proxy.counts.clear()
    for policy in ("missing", "never"):
        assert store.pull(reference, policy=policy) == first
    assert not proxy.counts
    assert store.pull(reference) == first
    assert proxy.counts == {f"HEAD /v2/{_name(tmp_path / 'x')}/manifests/1": 1}
    _push(registry, tmp_path / "two", "two")
    assert store.pull(reference, policy="missing") == first
    proxy.counts.clear()
    second = store.pull(reference)
    assert second.config.cmd == ("two",)
    assert proxy.count("GET", "/blobs/") == 2  # its configuration and its own layer
    assert second.diff_ids[0] == first.diff_ids[0]
    # A digest means one thing for ever.
    fixed = f"{proxy.host}/{_name(tmp_path / 'x')}@{first.digest}"
    assert store.pull(fixed).config.cmd == ("one",)
    proxy.counts.clear()
    assert store.pull(fixed).image_id == first.image_id
    assert not proxy.counts


_CHILD = """
import sys
from pathlib import Path
from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.store import ImageStore
sys.stdin.readline()
store = ImageStore(Path(sys.argv[1]), config=RegistryConfig(docker_config=sys.argv[2]))
print(store.pull(sys.argv[3]).image_id)
"""


def test_two_processes_pull_at_once(
    registry: RunningRegistry, proxy: _Proxy, store: ImageStore, tmp_path: Path
) -> None:
    layout = build_oci_layout(
        tmp_path / "layout", [tar_layer({"noise": hashlib.shake_256(b"1").digest(20 << 20)})]
    )
    registry.push(layout, _name(layout))
    reference = f"{proxy.host}/{_name(layout)}:1"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, store.root, tmp_path / "docker.json", reference],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=patient(60)) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    index = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    manifest = json.loads((layout / "blobs/sha256" / index.removeprefix("sha256:")).read_text())
    assert proxy.count("GET", manifest["layers"][0]["digest"]) == 1


def test_platforms(registry: RunningRegistry, store: ImageStore, tmp_path: Path) -> None:
    layout = build_oci_layout(tmp_path / "layout", [BASE], architecture="arm64")
    registry.push(layout, _name(layout))
    reference = f"{registry.host}/{_name(layout)}:1"
    with pytest.raises(ImageNotFound, match="descriptor matching platform 'linux/amd64'"):
        store.pull(reference)
    assert store.pull(reference, platform="linux/arm64").config.architecture == "arm64"
    assert store.find(reference) is None


def test_cancelled_pull_leaves_nothing(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path
) -> None:
    layout = build_oci_layout(
        tmp_path / "layout", [tar_layer({"noise": hashlib.shake_256(b"2").digest(20 << 20)})]
    )
    registry.push(layout, _name(layout))
    cancelled = threading.Event()
    with pytest.raises(ImageError, match="the pull was cancelled"):
        store.pull(
            f"{registry.host}/{_name(layout)}:1",
            on_progress=lambda progress: cancelled.set(),
            cancelled=cancelled,
        )
    assert store.list_images() == []
    store.gc()
    assert _names(store, "tmp") == set()


def test_only_the_owner_reads_the_store(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path
) -> None:
    layout = _push(registry, tmp_path / "layout", "one")
    old = os.umask(0o022)
    try:
        store.pull(f"{registry.host}/{_name(layout)}:1")
    finally:
        os.umask(old)
    paths = [store.root, *store.root.rglob("*")]
    assert len(paths) > 15
    for path in paths:
        mode = path.lstat().st_mode
        expected = 0o700 if stat.S_ISDIR(mode) else 0o600
        assert stat.S_IMODE(mode) == expected, path


def test_remove_keeps_what_others_need(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path
) -> None:
    one = _push(registry, tmp_path / "one", "one")
    _push(registry, tmp_path / "two", "two", tag="2")
    first = store.pull(f"{registry.host}/{_name(one)}:1")
    second = store.pull(f"{registry.host}/{_name(one)}:2")
    assert len(_names(store, "layers")) == 3
    store.remove(first.reference)
    assert _names(store, "layers") == {item.removeprefix("sha256:") for item in second.diff_ids}
    assert len(_names(store, "digests")) == 2
    assert store.list_images() == [second]
    with pytest.raises(ImageNotFound, match="is not in the store; see `fargatelite image list`"):
        store.remove(first.reference)
    store.remove(second.digest)
    for kind in ("layers", "digests", "images", "references", "tmp"):
        assert _names(store, kind) == set(), kind
    assert store.pull(second.reference) == second


def test_gc_takes_what_a_killed_pull_left(store: ImageStore) -> None:
    left = store.root / "tmp/1-abc"
    left.mkdir()
    (left / "blob.tmp").write_bytes(b"half")
    (store.root / "layers" / ("a" * 64)).mkdir()
    (store.root / "references/.half.1.ab").write_bytes(b"{")
    assert store.gc() == []
    for kind in ("layers", "tmp", "references"):
        assert _names(store, kind) == set(), kind


def test_gc_leaves_a_pull_that_is_going_on_alone(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path
) -> None:
    """At each step of a pull another process may clean up: its layers have no image yet."""
    layout = _push(registry, tmp_path / "layout", "one")
    text = f"{registry.host}/{_name(layout)}:1"
    other = ImageStore(store.root)

    def clean_up(progress: PullProgress) -> None:
        other.gc()

    client = Registry(parse_reference(text), None, insecure=True)
    try:
        fetch_image(store, client, text, "linux/amd64", clean_up)
    finally:
        client.close()
    assert store.find(text) is not None


@pytest.mark.parametrize("kind", ["references", "images"])
def test_damaged_store_says_what_to_do(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path, kind: str
) -> None:
    layout = _push(registry, tmp_path / "layout", "one")
    reference = f"{registry.host}/{_name(layout)}:1"
    store.pull(reference)
    (path,) = (store.root / kind).iterdir()
    (path if path.is_file() else path / "image.json").write_bytes(b"{}")
    with pytest.raises(StateCorrupt, match=r"pull (the image|it) again"):
        ImageStore(store.root).find(reference)


def test_store_of_another_version_is_refused(store: ImageStore) -> None:
    (store.root / "VERSION").write_text("99")
    with pytest.raises(
        StateCorrupt, match="is of version '99', this uses 1; use another data root"
    ):
        ImageStore(store.root)


# ---- load ----


def test_loaded_layout(store: ImageStore, tmp_path: Path) -> None:
    layout = build_oci_layout(tmp_path / "My-App", [BASE], {"Cmd": ["x"]}, tag="7")
    (image,) = store.load(layout)
    assert image.reference == "localhost/my-app:7"
    # No registry is asked for what was loaded.
    assert store.pull("localhost/my-app:7") == image
    archive = tmp_path / "my-app.tar"
    with tarfile.open(archive, "w") as out:
        out.add(layout, ".")
    again = ImageStore(tmp_path / "other")
    (loaded,) = again.load(archive)
    assert (loaded.image_id, loaded.reference) == (image.image_id, "localhost/my-app:7")


@pytest.mark.parametrize("tag", ["localhost/app:3", None])
def test_docker_archive_of_skopeo(store: ImageStore, tmp_path: Path, tag: str | None) -> None:
    layout = build_oci_layout(tmp_path / "layout", [BASE, tar_layer({"x": b"y"})], {"Cmd": ["x"]})
    target = f"docker-archive:{tmp_path}/saved.tar" + (f":{tag}" if tag else "")
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"oci:{layout}:1", target], check=True, capture_output=True
    )
    (image,) = store.load(tmp_path / "saved.tar")
    assert image.reference == (tag or "localhost/saved:latest")
    assert image.config.cmd == ("x",)
    assert image.diff_ids[0] == "sha256:" + hashlib.sha256(BASE).hexdigest()


def _edit(layout: Path, digest: str, change: dict[str, object]) -> str:
    """A changed copy of a JSON blob; returns its digest."""
    document = json.loads((layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_text())
    data = json.dumps({**document, **change}).encode()
    made = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / made).write_bytes(data)
    return f"sha256:{made}"


def _point(layout: Path, digest: str) -> None:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["digest"] = digest
    (layout / "index.json").write_text(json.dumps(index))


def _manifest(layout: Path) -> tuple[str, dict[str, dict[str, object]]]:
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    path = layout / "blobs/sha256" / digest.removeprefix("sha256:")
    return digest, json.loads(path.read_text())


def test_layout_with_fewer_diff_ids_than_layers(store: ImageStore, tmp_path: Path) -> None:
    layout = build_oci_layout(tmp_path / "layout", [BASE, tar_layer({"x": b""})])
    digest, manifest = _manifest(layout)
    config = _edit(
        layout, str(manifest["config"]["digest"]), {"rootfs": {"type": "layers", "diff_ids": []}}
    )
    _point(layout, _edit(layout, digest, {"config": {**manifest["config"], "digest": config}}))
    with pytest.raises(ImageInvalid, match="2 layers in the manifest, 0 in the configuration"):
        store.load(layout)


def test_layout_of_another_platform(store: ImageStore, tmp_path: Path) -> None:
    layout = build_oci_layout(tmp_path / "layout", [BASE], architecture="arm64")
    with pytest.raises(ImageNotFound, match="descriptor matching platform 'linux/amd64'"):
        store.load(layout)


def test_layout_whose_inner_manifest_was_changed(store: ImageStore, tmp_path: Path) -> None:
    layout = build_oci_layout(tmp_path / "layout", [BASE], {"Cmd": ["good"]})
    digest, _ = _manifest(layout)
    path = layout / "blobs/sha256" / digest.removeprefix("sha256:")
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
        "size": path.stat().st_size, "platform": {"os": "linux", "architecture": "amd64"},
    }  # fmt: skip
    data = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    index = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / index).write_bytes(data)
    _point(layout, f"sha256:{index}")
    (image,) = store.load(layout)
    assert image.digest == f"sha256:{index}"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DigestMismatch, match="manifest has digest sha256:"):
        ImageStore(tmp_path / "other").load(layout)


@pytest.mark.parametrize("path", ["../secret.json", "/etc/hostname", "link", "fifo", "none"])
def test_saved_directory_leads_nowhere_else(store: ImageStore, tmp_path: Path, path: str) -> None:
    """A manifest.json names regular files of its own directory alone (a FIFO would hang)."""
    (tmp_path / "secret.json").write_text('{"rootfs": {"type": "layers", "diff_ids": []}}')
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "link").symlink_to("../secret.json")
    os.mkfifo(saved / "fifo")
    document = [{"Config": path, "Layers": [], "RepoTags": ["localhost/x:1"]}]
    (saved / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ImageInvalid, match="has no file"):
        store.load(saved)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"\x1f\x8b" + b"x" * 600])
def test_what_is_no_image(store: ImageStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.tar").write_bytes(content)
    with pytest.raises(ImageInvalid):
        store.load(tmp_path / "file.tar")
    with pytest.raises(ImageInvalid, match=r"is neither an OCI layout .* nor a docker-archive"):
        store.load(tmp_path)
    with pytest.raises(ImageError, match=r"none\.tar"):
        store.load(tmp_path / "none.tar")
