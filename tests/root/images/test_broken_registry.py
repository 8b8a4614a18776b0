"""Registries that misbehave: a small real server, and what the user reads then."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import gzip
import hashlib
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fargatelite.errors import (
    DigestMismatch,
    FargateliteError,
    ImageError,
    ImageInvalid,
    ImageNotFound,
    RegistryDenied,
    RegistryUnavailable,
)
from fargatelite.images import registry as registry_module
from fargatelite.images.credentials import Credentials, RegistryConfig
from fargatelite.images.reference import parse_reference
from fargatelite.images.registry import Registry
from fargatelite.images.store import ImageStore
from tests.fixtures.images import build_oci_layout, free_port, tar_layer
from tests.fixtures.patience import patient

pytestmark = pytest.mark.root

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
Answer = Callable[["_Request"], None]


class _Request(BaseHTTPRequestHandler):
    """Answers from `server.blobs` and `server.manifests`, unless a test's `on` says otherwise."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        with server.lock:
            server.seen.append((self.command, self.path, dict(self.headers.items())))
            server.counts[path] += 1
        for prefix, answer in server.answers.items():
            if path.startswith(prefix):
                answer(self)
                return
        self.serve()

    do_HEAD = do_POST = do_GET

    def serve(self) -> None:
        """What a registry that works answers."""
        server, name = self.server, self.path.partition("?")[0].rpartition("/")[2]
        if name in server.manifests:
            digest = "sha256:" + hashlib.sha256(server.manifests[name]).hexdigest()
            self.send(
                200, server.manifests[name], Content_Type=MANIFEST, Docker_Content_Digest=digest
            )
        elif name in server.blobs:
            data = server.blobs[name]
            start = self.headers.get("Range", "")
            if start:
                at = int(start.removeprefix("bytes=").rstrip("-"))
                if at >= len(data):
                    self.send(416)
                    return
                span = f"bytes {at}-{len(data) - 1}/{len(data)}"
                self.send(206, data[at:], Content_Range=span)
            else:
                self.send(200, data)
        else:
            self.send(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')

    @property
    def count(self) -> int:
        """How often this path was asked for, this time included."""
        return self.server.counts[self.path.partition("?")[0]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.host = f"127.0.0.1:{self.server_port}"
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.layers: list[str] = []
        self.config = ""

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests want."""

    def put(self, layout: Path) -> None:
        """Serves the image of a layout as `app:1`."""
        for path in (layout / "blobs/sha256").iterdir():
            self.blobs[f"sha256:{path.name}"] = path.read_bytes()
        digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
        self.manifests["1"] = self.manifests[digest] = self.blobs.pop(digest)
        manifest = json.loads(self.manifests["1"])
        self.layers = [layer["digest"] for layer in manifest["layers"]]
        self.config = manifest["config"]["digest"]

    def on(self, path: str, answer: Answer) -> None:
        """Another answer to what begins with `path`."""
        self.answers[path] = answer

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of each request to a path that begins so."""
        return [headers for _, at, headers in self.seen if at.startswith(path)]


@contextlib.contextmanager
def _running() -> Iterator[_Server]:
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[_Server]:
    with _running() as running:
        noise = hashlib.shake_256(b"1").digest(400_000)
        running.put(build_oci_layout(tmp_path / "layout", [tar_layer({"noise": noise})]))
        yield running


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    (tmp_path / "docker.json").write_text("{}")
    config = RegistryConfig(docker_config=str(tmp_path / "docker.json"))
    return ImageStore(tmp_path / "data", config=config)


def _log_in(store: ImageStore, host: str, password: str = "secret") -> None:
    auth = base64.b64encode(f"me:{password}".encode()).decode()
    assert store.config.docker_config is not None
    Path(store.config.docker_config).write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def _refused(store: ImageStore, reference: str, kind: type[FargateliteError]) -> str:
    """The message of a pull that fails, after which nothing half is in the store."""
    with pytest.raises(ImageError) as caught:
        store.pull(reference)
    assert type(caught.value) is kind, caught.value
    assert list((store.root / "tmp").iterdir()) == []
    assert store.list_images() == []
    return str(caught.value)


def _direct(server: _Server, credentials: Credentials | None = None, attempts: int = 2) -> Registry:
    reference = parse_reference(f"{server.host}/app:1")
    return Registry(reference, credentials, insecure=True, attempts=attempts)


V2 = "/v2/app"


def test_a_registry_that_works(server: _Server, store: ImageStore) -> None:
    image = store.pull(f"{server.host}/app:1")
    assert image.image_id == server.config
    assert server.counts[f"{V2}/blobs/{server.layers[0]}"] == 1


# ---- bytes ----


def gzip_of_length(length: int) -> bytes:
    """A gzip member of zeros in a name of the right length (RFC 1952, FNAME)."""
    empty = gzip.compress(b"", mtime=0)
    return empty[:3] + b"\x08" + empty[4:10] + b"n" * (length - len(empty) - 1) + b"\0" + empty[10:]


def test_layer_with_other_bytes(server: _Server, store: ImageStore) -> None:
    # A layer of its own, padded by an empty gzip member to the length that the manifest says.
    bad = gzip.compress(tar_layer({"noise": b"other"}))
    member = len(server.blobs[server.layers[0]]) - len(bad)
    bad += gzip_of_length(member)
    assert len(bad) == len(server.blobs[server.layers[0]])
    server.blobs[server.layers[0]] = bad
    message = _refused(store, f"{server.host}/app:1", DigestMismatch)
    assert message == (
        f"layer has digest sha256:{hashlib.sha256(bad).hexdigest()}, expected {server.layers[0]}"
    )


def test_layer_that_is_longer_than_its_manifest_says(server: _Server, store: ImageStore) -> None:
    server.blobs[server.layers[0]] += b"more"
    message = _refused(store, f"{server.host}/app:1", DigestMismatch)
    assert "bytes, which its manifest says; the registry is wrong or lying" in message


def test_config_with_other_bytes(server: _Server, store: ImageStore) -> None:
    server.blobs[server.config] += b" "
    message = _refused(store, f"{server.host}/app:1", DigestMismatch)
    assert message.startswith("image configuration has digest sha256:")


def test_manifest_with_other_bytes_than_its_digest(server: _Server, store: ImageStore) -> None:
    digest = "sha256:" + hashlib.sha256(server.manifests["1"]).hexdigest()
    server.manifests[digest] += b" "
    message = _refused(store, f"{server.host}/app@{digest}", DigestMismatch)
    assert message.startswith("manifest has digest sha256:")


@pytest.mark.parametrize("body", [b"", b"<html>login</html>", b"[]", b"[" * 100_000])
def test_manifest_that_is_none(server: _Server, store: ImageStore, body: bytes) -> None:
    server.manifests["1"] = body
    assert "manifest" in _refused(store, f"{server.host}/app:1", ImageInvalid)


def test_manifest_without_end(server: _Server, store: ImageStore) -> None:
    server.manifests["1"] = b" " * (5 << 20)
    message = _refused(store, f"{server.host}/app:1", ImageInvalid)
    assert "manifest of over 4194304 bytes" in message


def test_layer_that_is_no_gzip(server: _Server, store: ImageStore) -> None:
    server.blobs[server.layers[0]] = b"x" * len(server.blobs[server.layers[0]])
    assert "cannot decompress a layer" in _refused(store, f"{server.host}/app:1", ImageInvalid)


# ---- broken downloads ----


def _cut(at: int, times: int) -> Answer:
    """Hangs up after `at` bytes, the first `times` times."""

    def answer(request: _Request) -> None:
        if request.count > times:
            request.serve()
            return
        data = request.server.blobs[request.path.rpartition("/")[2]]
        request.send(200, data[:at], Content_Length=str(len(data)))
        request.wfile.flush()
        request.connection.shutdown(socket.SHUT_RDWR)

    return answer


def test_broken_download_is_continued(server: _Server, store: ImageStore) -> None:
    layer = f"{V2}/blobs/{server.layers[0]}"
    server.on(layer, _cut(100_000, 1))
    store.pull(f"{server.host}/app:1")
    first, second = server.asked(layer)
    assert "Range" not in first
    assert second["Range"] == "bytes=100000-"


def test_broken_download_of_a_registry_without_range(server: _Server, store: ImageStore) -> None:
    layer = f"{V2}/blobs/{server.layers[0]}"

    def answer(request: _Request) -> None:
        if request.count == 1:
            _cut(100_000, 1)(request)
        else:
            request.send(200, request.server.blobs[server.layers[0]])

    server.on(layer, answer)
    store.pull(f"{server.host}/app:1")
    assert server.counts[layer] == 2


def test_download_that_breaks_for_ever(server: _Server, store: ImageStore) -> None:
    layer = f"{V2}/blobs/{server.layers[0]}"
    server.on(layer, _cut(0, 99))
    message = _refused(store, f"{server.host}/app:1", RegistryUnavailable)
    assert message.startswith("ref pull has been retried 4 time(s): failed to copy: layer sha256:")
    assert f"broke off after 0 of {len(server.blobs[server.layers[0]])} bytes" in message


def test_registry_whose_copy_is_truncated(server: _Server, store: ImageStore) -> None:
    whole = len(server.blobs[server.layers[0]])
    server.blobs[server.layers[0]] = server.blobs[server.layers[0]][:1000]
    message = _refused(store, f"{server.host}/app:1", DigestMismatch)
    assert message == (
        f"layer {server.layers[0]} ends after 1000 of {whole} bytes; the registry's copy is "
        "truncated"
    )


def test_silence_ends_a_download(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(registry_module, "BLOB_RESUMES", 1)
    released = threading.Event()

    def answer(request: _Request) -> None:
        data = request.server.blobs[server.layers[0]]
        request.send(200, data[:10], Content_Length=str(len(data)))
        request.wfile.flush()
        released.wait(patient(20))
        request.close_connection = True

    server.on(f"{V2}/blobs/", answer)
    registry = _direct(server)
    started = time.monotonic()
    try:
        with pytest.raises(RegistryUnavailable, match=r"broke off after .*timed out"):
            list(registry.stream_blob(server.layers[0], len(server.blobs[server.layers[0]])))
    finally:
        released.set()
        registry.close()
    assert time.monotonic() - started < 5


def test_silence_before_an_answer(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "READ_TIMEOUT_S", 0.2)
    released = threading.Event()

    def answer(request: _Request) -> None:
        released.wait(patient(20))
        request.close_connection = True

    server.on(V2, answer)
    registry = _direct(server)
    try:
        with pytest.raises(RegistryUnavailable, match=r"cannot reach http://127.* timed out"):
            registry.resolve()
    finally:
        released.set()
        registry.close()


# ---- who may ----

BASIC = {"WWW_Authenticate": 'Basic realm="r"'}


def _needs(value: str, **challenge: str) -> Answer:
    def answer(request: _Request) -> None:
        if request.headers.get("Authorization") == value:
            request.serve()
        else:
            request.send(401, b"{}", **challenge)

    return answer


def test_no_credentials(server: _Server, store: ImageStore) -> None:
    server.on(V2, _needs("Basic never", **BASIC))
    message = _refused(store, f"{server.host}/app:1", RegistryDenied)
    assert message == (
        f"{server.host}/app:1: no basic auth credentials; log in with docker, podman or skopeo, or "
        "set credHelpers"
    )


def test_wrong_credentials(server: _Server, store: ImageStore) -> None:
    server.on(V2, _needs("Basic never", **BASIC))
    _log_in(store, server.host)
    message = _refused(store, f"{server.host}/app:1", RegistryDenied)
    assert "unexpected status 401 for manifest: access denied; log in" in message
    assert "secret" not in message
    assert len(server.seen) == 2  # a wrong password is not tried until the account is locked


def test_right_credentials(server: _Server, store: ImageStore) -> None:
    server.on(V2, _needs("Basic " + base64.b64encode(b"me:secret").decode(), **BASIC))
    _log_in(store, server.host)
    store.pull(f"{server.host}/app:1")
    assert sum("Authorization" not in headers for _, _, headers in server.seen) == 1


@pytest.mark.parametrize("challenge", ["", "Negotiate", "Bearer", "Bearer realm="])
def test_strange_challenges(server: _Server, store: ImageStore, challenge: str) -> None:
    server.on(V2, _needs("never", WWW_Authenticate=challenge))
    _refused(store, f"{server.host}/app:1", RegistryDenied)


def test_403(server: _Server, store: ImageStore) -> None:
    server.on(V2, lambda request: request.send(403))
    message = _refused(store, f"{server.host}/app:1", RegistryDenied)
    assert "unexpected status 403 for manifest: access denied" in message
    assert len(server.seen) == 1


def _bearer(server: _Server) -> str:
    realm = f"http://{server.host}/token"
    return f'Bearer realm="{realm}",service="the, service",scope="repository:app:pull"'


@pytest.mark.parametrize("key", ["token", "access_token"])
@pytest.mark.parametrize("is_logged_in", [True, False])
def test_bearer_tokens(server: _Server, store: ImageStore, key: str, is_logged_in: bool) -> None:
    server.on(V2, _needs("Bearer abc.def", WWW_Authenticate=_bearer(server)))
    server.on("/token", lambda request: request.send(200, json.dumps({key: "abc.def"}).encode()))
    if is_logged_in:
        _log_in(store, server.host)
    store.pull(f"{server.host}/app:1")
    (asked,) = [path for _, path, _ in server.seen if path.startswith("/token")]
    assert asked == "/token?scope=repository%3Aapp%3Apull&service=the%2C+service"
    (headers,) = server.asked("/token")
    assert ("Authorization" in headers) == is_logged_in
    for headers in server.asked(V2):
        assert headers.get("Authorization") in (None, "Bearer abc.def")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"{}", "the token service answered 401; check the credentials"),
        (200, b"{}", "the token service gave no token"),
        (200, b"<html>", "the token service gave no token"),
        (200, b"[" * 100_000, "the token service gave no token"),
        (200, b'{"token": ""}', "the token service gave no token"),
        (200, b'{"token": "a\\r\\nX-Injected: 1"}', "the token service gave no token"),
        (200, b'{"token": "\\u20ac"}', "the token service gave no token"),
    ],
)
def test_bad_token_services(
    server: _Server, store: ImageStore, status: int, body: bytes, words: str
) -> None:
    server.on(V2, _needs("Bearer x", WWW_Authenticate=_bearer(server)))
    server.on("/token", lambda request: request.send(status, body))
    assert words in _refused(store, f"{server.host}/app:1", RegistryDenied)


def test_refresh_token(server: _Server) -> None:
    bodies = []

    def answer(request: _Request) -> None:
        bodies.append(request.rfile.read(int(request.headers["Content-Length"])).decode())
        request.send(200, b'{"access_token": "t"}')

    server.on(V2, _needs("Bearer t", WWW_Authenticate=_bearer(server)))
    server.on("/token", answer)
    registry = _direct(server, Credentials(username="", password="", identity_token="refresh"))
    try:
        assert registry.resolve() is not None
    finally:
        registry.close()
    assert "grant_type=refresh_token&refresh_token=refresh&client_id=fargatelite" in bodies[0]


def test_token_service_without_tls_gets_no_credentials(server: _Server) -> None:
    reference = parse_reference("example.com/app:1")
    registry = Registry(reference, Credentials(username="me", password="secret"))
    with pytest.raises(RegistryDenied, match=r"token service 'http://.*' without TLS"):
        registry._fetch_token({"realm": f"http://{server.host}/token"})
    registry.close()
    assert server.seen == []


# ---- answers ----


def test_404(server: _Server, store: ImageStore) -> None:
    message = _refused(store, f"{server.host}/app:none", ImageNotFound)
    assert message == (
        "pull image manifest has been retried 5 time(s): failed to resolve ref "
        f"{server.host}/app:none: {server.host}/app:none: not found"
    )


def test_layer_that_is_not_there(server: _Server, store: ImageStore) -> None:
    del server.blobs[server.layers[0]]
    assert "not found" in _refused(store, f"{server.host}/app:1", ImageNotFound)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_passing_trouble_is_waited_out(server: _Server, store: ImageStore, status: int) -> None:
    def answer(request: _Request) -> None:
        if request.count == 1:
            request.send(status, Retry_After="0")
        else:
            request.serve()

    server.on(V2, answer)
    store.pull(f"{server.host}/app:1")
    assert set(server.counts.values()) == {2}


def test_retry_after_is_obeyed_up_to_a_bound(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "MAX_RETRY_AFTER_S", 1)

    def answer(request: _Request) -> None:
        if request.count == 1:
            request.send(429, Retry_After="3600")
        else:
            request.serve()

    server.on(V2, answer)
    registry = _direct(server)
    started = time.monotonic()
    try:
        assert registry.resolve() is not None
    finally:
        registry.close()
    assert 1 <= time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "429 Too Many Requests: the registry throttles"),
        (500, "unexpected status 500 for manifest"),
        (503, "unexpected status 503 for manifest"),
    ],
)
def test_lasting_trouble(server: _Server, status: int, words: str) -> None:
    server.on(V2, lambda request: request.send(status, Retry_After="0"))
    registry = _direct(server, attempts=3)
    try:
        with pytest.raises(RegistryUnavailable) as caught:
            registry.fetch_manifest("1")
    finally:
        registry.close()
    assert str(caught.value).startswith("pull image manifest has been retried 3 time(s): failed ")
    assert words in str(caught.value)
    assert caught.value.retryable
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 418])
def test_other_answers_are_not_retried(server: _Server, store: ImageStore, status: int) -> None:
    server.on(V2, lambda request: request.send(status))
    message = _refused(store, f"{server.host}/app:1", ImageError)
    assert f"unexpected status {status} for manifest" in message
    assert len(server.seen) == 1


def test_dead_port(store: ImageStore) -> None:
    host = f"127.0.0.1:{free_port()}"
    message = _refused(store, f"{host}/app:1", RegistryUnavailable)
    assert f"cannot reach http://{host}: " in message
    assert "Connection refused; check the registry and the network" in message


def test_server_that_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        ended = threading.Event()

        def answer() -> None:
            listener.settimeout(0.1)
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            registry = Registry(parse_reference(f"{host}/app"), None, insecure=True, attempts=2)
            with pytest.raises(RegistryUnavailable, match=f"cannot reach http://{host}: "):
                registry.resolve()
            registry.close()
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize("status", [401, 403, 404, 416, 500])
def test_connections_are_closed_after_any_answer(server: _Server, status: int) -> None:
    body = b"x" * 100_000
    server.on(V2, lambda request: request.send(status, body, WWW_Authenticate="Basic"))
    registry = _direct(server, Credentials(username="me", password="secret"), attempts=1)
    try:
        for _ in range(3):
            with pytest.raises(ImageError):
                registry.fetch_manifest("1")
            with pytest.raises(ImageError):
                next(registry.stream_blob("sha256:" + "a" * 64, 5))
    finally:
        registry.close()
    gc.collect()  # an unclosed socket warns here, and a warning fails the test


@pytest.mark.parametrize("digest", ["", "sha256:none", "sha256:" + "A" * 64, "md5:1"])
def test_head_without_a_digest_decides_nothing(server: _Server, digest: str) -> None:
    server.on(V2, lambda request: request.send(200, Docker_Content_Digest=digest))
    registry = _direct(server)
    try:
        assert registry.resolve() is None
    finally:
        registry.close()


@pytest.mark.parametrize("length", ["many", "-1", "1" * 5000, "\u00b2"])
def test_head_with_a_strange_length(server: _Server, length: str) -> None:
    digest = "sha256:" + "a" * 64
    server.on(
        V2, lambda request: request.send(200, Docker_Content_Digest=digest, Content_Length=length)
    )
    registry = _direct(server)
    try:
        found = registry.resolve()
    finally:
        registry.close()
    assert found is not None
    assert found.digest == digest


@pytest.mark.parametrize("realm", ["http://[::1", "ftp://x/", "http://127.0.0.1:none/"])
def test_token_services_that_are_no_address(server: _Server, store: ImageStore, realm: str) -> None:
    server.on(V2, _needs("never", WWW_Authenticate=f'Bearer realm="{realm}"'))
    with pytest.raises(ImageError) as caught:
        store.pull(f"{server.host}/app:1")
    assert "the pull process ended" not in str(caught.value)


# ---- redirects ----


def _to(location: str) -> Answer:
    return lambda request: request.send(307, Location=location)


def test_another_host_gets_the_request_without_authorization(
    server: _Server, store: ImageStore
) -> None:
    """CVE-2020-15157: credentials follow no redirect."""
    with _running() as other:
        other.blobs = server.blobs
        server.on(V2, _needs("Basic " + base64.b64encode(b"me:secret").decode(), **BASIC))
        server.on(f"{V2}/blobs", lambda request: _to(f"http://{other.host}{request.path}")(request))
        server.answers = dict(sorted(server.answers.items(), key=lambda item: -len(item[0])))
        _log_in(store, server.host)
        store.pull(f"{server.host}/app:1")
        assert [path for _, path, _ in other.seen] == [
            f"{V2}/blobs/{server.config}", f"{V2}/blobs/{server.layers[0]}",
        ]  # fmt: skip
        for _, _, headers in other.seen:
            assert "Authorization" not in headers
        assert all("Authorization" in headers for headers in server.asked(f"{V2}/blobs"))


def test_given_credentials_follow_no_redirect_and_go_before_the_hosts(
    server: _Server, store: ImageStore
) -> None:
    given = Credentials(username="given", password="by the task")
    with _running() as other:
        other.blobs = server.blobs
        server.on(V2, _needs(given.basic(), **BASIC))
        server.on(f"{V2}/blobs", lambda request: _to(f"http://{other.host}{request.path}")(request))
        server.answers = dict(sorted(server.answers.items(), key=lambda item: -len(item[0])))
        _log_in(store, server.host)
        reference = f"{server.host}/app:1"
        image = store.pull(reference, credentials=given)
        assert len(other.seen) == 2
        for _, _, headers in other.seen:
            assert "Authorization" not in headers
        # What is in the store is asked for with them as well, and for nobody else.
        assert store.pull(reference, credentials=given) == image
        with pytest.raises(RegistryDenied, match="access denied"):
            store.pull(reference)


def test_another_host_that_asks_for_credentials_gets_none(
    server: _Server, store: ImageStore
) -> None:
    with _running() as other:
        other.on("/", _needs("never", **BASIC))
        server.on(f"{V2}/blobs", lambda request: _to(f"http://{other.host}{request.path}")(request))
        _log_in(store, server.host)
        message = _refused(store, f"{server.host}/app:1", RegistryDenied)
        assert "unexpected status 401 for config" in message
        assert all("Authorization" not in headers for _, _, headers in other.seen)


def test_redirects_without_end(server: _Server, store: ImageStore) -> None:
    server.on(V2, lambda request: _to(request.path)(request))
    message = _refused(store, f"{server.host}/app:1", RegistryUnavailable)
    assert message == f"{server.host}/app:1: over 5 redirects"
    assert len(server.seen) < 10


@pytest.mark.parametrize(
    "location",
    ["http://[::1", "file:///etc/passwd", "http://host:port/", "http://", "//", "gopher://x/"],
)
def test_redirects_to_nowhere(server: _Server, store: ImageStore, location: str) -> None:
    server.on(f"{V2}/blobs", _to(location))
    with pytest.raises(ImageError) as caught:
        store.pull(f"{server.host}/app:1")
    assert "the pull process ended" not in str(caught.value)
    assert str(caught.value)


# ---- disk ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = tmp_path / "small"
    target.mkdir()
    done = libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, b"size=20m")
    assert done == 0, os.strerror(ctypes.get_errno())
    try:
        yield target
    finally:
        assert libc.umount2(os.fsencode(target), 0) == 0, os.strerror(ctypes.get_errno())


def test_full_disk_while_pulling(
    server: _Server, store: ImageStore, small_disk: Path, tmp_path: Path
) -> None:
    noise = hashlib.shake_256(b"3").digest(30 << 20)
    layers = [tar_layer({"small": b"s"}), tar_layer({"noise": noise})]
    server.put(build_oci_layout(tmp_path / "large", layers, compression="none"))
    full = ImageStore(small_disk / "data", config=store.config)
    message = _refused(full, f"{server.host}/app:1", ImageError)
    assert message == f"failed to copy: no space left on device in {small_disk}/data"
    # With room again the same pull works, and takes nothing twice that was whole.
    other: dict[str, Any] = {"noise": b"little"}
    server.put(build_oci_layout(tmp_path / "little", [layers[0], tar_layer(other)]))
    full.pull(f"{server.host}/app:1")
