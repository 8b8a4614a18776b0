"""The process that fetches and parses what strangers wrote: manifests, configurations, layers.

It runs without capabilities and without a way to gain any (python-prctl), with a clean environment,
and dies with its parent. The parent speaks one line of JSON to it and reads lines back; what it
publishes it publishes by rename into the store, named by digests that it computed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fargatelite import errors
from fargatelite.errors import (
    DigestMismatch,
    FargateliteError,
    HostUnsupported,
    ImageError,
    ImageInvalid,
    ImageNotFound,
)
from fargatelite.images.credentials import Credentials, RegistryConfig
from fargatelite.images.image import ImageConfig, PullProgress
from fargatelite.images.manifest import (
    Descriptor,
    Manifest,
    parse_config,
    parse_manifest,
)
from fargatelite.names import DiffId, Digest

if TYPE_CHECKING:
    from fargatelite.images.registry import Registry
    from fargatelite.images.store import ImageStore, LayerEntry

__all__ = ["fetch_image", "run_load", "run_worker"]

PARALLEL_LAYERS = 3
PROGRESS_STEP_BYTES = 1 << 20
CANCEL_LOOK_S = 0.1
# What reaches the worker of the caller's environment: where credentials, certificates and proxies
# are. Nothing that a loader or interpreter obeys.
_ENVIRONMENT = ("HOME", "PATH", "DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR", "LANG", "TZ")
_ENVIRONMENT_PREFIXES = ("AWS_",)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")

Emit = Callable[[PullProgress], None]


class _Request(msgspec.Struct, kw_only=True):
    store: str
    config: RegistryConfig
    reference: str | None = None
    platform: str = "linux/amd64"
    credentials: Credentials | None = None
    """For the reference's registry; travels by the pipe only, never by argument or environment."""
    load: str | None = None


class _Answer(msgspec.Struct, kw_only=True, omit_defaults=True):
    progress: PullProgress | None = None
    error: str | None = None
    message: str | None = None
    errno: int | None = None
    names: tuple[str, ...] | None = None


# ---- parent ----


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name in _PROXIES or name.startswith(_ENVIRONMENT_PREFIXES)
    }


def _converse(
    request: _Request, on_progress: Emit | None, cancelled: threading.Event | None
) -> tuple[str, ...]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "fargatelite.images.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        cwd="/",
        start_new_session=True,  # Ctrl-C on the terminal is the parent's to handle
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    said: list[bytes] = []
    stdout, stderr = process.stdout, process.stderr

    def read_answers() -> None:
        for line in stdout:
            lines.put(line)
        lines.put(b"")

    readers = [
        threading.Thread(target=read_answers, daemon=True),
        threading.Thread(target=lambda: said.append(stderr.read()), daemon=True),
    ]
    started: list[threading.Thread] = []
    try:
        for reader in readers:
            try:
                reader.start()
            except RuntimeError as error:
                raise HostUnsupported(
                    f"cannot fetch or load an image: {error}: see ulimit -u and pids.max",
                    errno=errno.EAGAIN,
                ) from error
            started.append(reader)
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.close()
        while True:
            if cancelled is not None and cancelled.is_set():
                raise ImageError("the pull was cancelled")
            try:
                line = lines.get(timeout=CANCEL_LOOK_S if cancelled is not None else None)
            except queue.Empty:
                continue
            if not line:
                break
            answer = msgspec.json.decode(line, type=_Answer)
            if answer.progress is not None and on_progress is not None:
                on_progress(answer.progress)
            if answer.error is not None:
                kind = getattr(errors, answer.error, ImageError)
                raise kind(answer.message or answer.error, errno=answer.errno)
            if answer.names is not None:
                return answer.names
    except BrokenPipeError:
        pass  # it died before it read: its words say why
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for reader in started:
            reader.join()
        stdout.close()
        stderr.close()
    words = b"".join(said).decode("utf-8", "replace").strip().splitlines()
    raise ImageError(
        f"the pull process ended with {process.returncode}: {words[-1] if words else 'no message'}"
    )


def run_worker(
    store: ImageStore,
    reference: str,
    platform: str,
    on_progress: Emit | None,
    cancelled: threading.Event | None,
    credentials: Credentials | None = None,
) -> None:
    """Pulls an image into the store in a process of its own.

    Raises: what the worker met, by class; ImageError when it was cancelled or died.
    """
    request = _Request(
        store=os.fspath(store.root), config=store.config, reference=reference, platform=platform,
        credentials=credentials,
    )  # fmt: skip
    _converse(request, on_progress, cancelled)


def run_load(store: ImageStore, path: Path) -> tuple[str, ...]:
    """Loads a docker-archive or OCI layout in a process of its own; returns the names in it."""
    request = _Request(
        store=os.fspath(store.root), config=store.config, load=os.fspath(path.absolute())
    )
    return _converse(request, None, None)


# ---- worker ----


def _check_digest(data: bytes, digest: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if f"sha256:{found}" != digest:
        raise DigestMismatch(f"{what} has digest sha256:{found}, expected {digest}")


def _fetch_manifest(registry: Registry, target: str, platform: str) -> tuple[Digest, Manifest]:
    data, content_type = registry.fetch_manifest(target)
    top = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
    if target.startswith("sha256:"):
        _check_digest(data, target, "manifest")
    parsed = parse_manifest(data, content_type, platform)
    if isinstance(parsed, Descriptor):
        chosen = parsed
        data, content_type = registry.fetch_manifest(chosen.digest)
        _check_digest(data, chosen.digest, "manifest")
        parsed = parse_manifest(data, content_type, platform)
        if isinstance(parsed, Descriptor):
            raise ImageInvalid("an index that leads to another index")
    return top, parsed


def _fetch_layer(
    store: ImageStore, registry: Registry, reference: str, layer: Descriptor, emit: Emit
) -> LayerEntry:
    from fargatelite.images.layer import LayerWriter

    def tell(done: int, phase: str) -> None:
        emit(
            PullProgress(
                reference=reference,
                layer=layer.digest,
                done_bytes=done,
                total_bytes=layer.size,
                phase=phase,
            )
        )

    found = store.find_layer(layer.digest)
    if found is None:
        with store.lock(layer.digest):
            found = store.find_layer(layer.digest)
            if found is None:
                with store.scratch() as scratch:
                    writer = LayerWriter(scratch, layer.media_type)
                    try:
                        done = told = 0
                        tell(0, "download")
                        for chunk in registry.stream_blob(layer.digest, layer.size):
                            writer.feed(chunk)
                            done += len(chunk)
                            if done - told >= PROGRESS_STEP_BYTES:
                                told = done
                                tell(done, "download")
                        result = writer.finish()
                    finally:
                        writer.abort()
                    if result.digest != layer.digest:
                        raise DigestMismatch(
                            f"layer has digest {result.digest}, expected {layer.digest}"
                        )
                    found = store.publish_layer(result)
                tell(layer.size, "done")
                return found
    tell(layer.size, "exists")
    return found


def _check_config(
    config: ImageConfig, diff_ids: tuple[DiffId, ...], layers: int, platform: str
) -> None:
    system, _, architecture = platform.partition("/")
    if (config.os or system, config.architecture or architecture) != (system, architecture):
        raise ImageNotFound(
            f"image Manifest does not contain descriptor matching platform '{platform}'"
        )
    if len(diff_ids) != layers:
        raise ImageInvalid(f"{layers} layers in the manifest, {len(diff_ids)} in the configuration")


def fetch_image(
    store: ImageStore, registry: Registry, reference: str, platform: str, emit: Emit
) -> None:
    """Pulls manifest, configuration and layers, checks every digest, builds and names the image."""
    with store.shared():  # `gc` waits: until the end the layers have no image
        _fetch_image(store, registry, reference, platform, emit)


def _fetch_image(
    store: ImageStore, registry: Registry, reference: str, platform: str, emit: Emit
) -> None:
    from fargatelite.images.reference import parse_reference

    parsed = parse_reference(reference)
    digest, manifest = _fetch_manifest(registry, parsed.target, platform)
    config_data = registry.fetch_small_blob(manifest.config.digest)
    _check_digest(config_data, manifest.config.digest, "image configuration")
    config, diff_ids = parse_config(config_data)
    _check_config(config, diff_ids, len(manifest.layers), platform)
    with ThreadPoolExecutor(PARALLEL_LAYERS) as pool:
        futures = [
            pool.submit(_fetch_layer, store, registry, reference, layer, emit)
            for layer in manifest.layers
        ]
        try:
            layers = [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    publish_image(
        store, reference, platform, digest, Digest(manifest.config.digest), config_data, layers
    )
    emit(
        PullProgress(
            reference=reference,
            layer=manifest.config.digest,
            done_bytes=1,
            total_bytes=1,
            phase="image",
        )
    )


def publish_image(
    store: ImageStore,
    reference: str,
    platform: str,
    digest: Digest,
    image_id: Digest,
    config_data: bytes,
    layers: Sequence[LayerEntry],
    *,
    is_loaded: bool = False,
) -> None:
    """Builds the image of layers that are in the store, and gives it its name."""
    from fargatelite.images.reference import parse_reference

    config, diff_ids = parse_config(config_data)
    _check_config(config, diff_ids, len(layers), platform)
    for entry, diff_id in zip(layers, diff_ids, strict=True):
        if entry.diff_id != diff_id:
            raise DigestMismatch(
                f"a layer unpacks to {entry.diff_id}, its configuration says {diff_id}"
            )
    with store.lock(image_id):
        store.build_image(image_id, config, layers)
    store.record_reference(
        reference, parse_reference(reference), digest, digest, image_id, platform,
        is_loaded=is_loaded,
    )  # fmt: skip


def _work(request: _Request, emit: Emit) -> tuple[str, ...]:
    from fargatelite.images.credentials import find_credentials, is_plain_http
    from fargatelite.images.reference import parse_reference
    from fargatelite.images.registry import Registry
    from fargatelite.images.store import ImageStore

    store = ImageStore(Path(request.store), config=request.config)
    if request.load is not None:
        from fargatelite.images.load import load_images

        with store.shared():  # as in `fetch_image`
            return load_images(store, Path(request.load))
    assert request.reference is not None
    reference = parse_reference(request.reference)
    registry = Registry(
        reference,
        request.credentials or find_credentials(reference.registry, request.config),
        insecure=is_plain_http(reference.registry, request.config),
    )
    try:
        fetch_image(store, registry, request.reference, request.platform, emit)
    finally:
        registry.close()
    return (request.reference,)


def drop_privileges() -> None:
    """No capability, no way to one, no core dump, no life after the parent (prctl(2))."""
    import prctl

    prctl.set_pdeathsig(signal.SIGKILL)
    prctl.set_dumpable(0)
    prctl.set_no_new_privs(1)
    prctl.capbset.limit()
    prctl.cap_inheritable.limit()
    prctl.cap_effective.limit()
    prctl.cap_permitted.limit()


def main() -> None:
    """One request from stdin, answers to stdout."""
    drop_privileges()
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Request)
    lock = threading.Lock()
    out = sys.stdout.buffer

    def answer(value: _Answer) -> None:
        with lock:
            out.write(msgspec.json.encode(value) + b"\n")
            out.flush()

    try:
        names = _work(request, lambda progress: answer(_Answer(progress=progress)))
    except FargateliteError as error:
        answer(_Answer(error=type(error).__name__, message=str(error), errno=error.errno))
        return
    except OSError as error:
        text = error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            text = f"no space left on device in {request.store}"
        answer(
            _Answer(
                error="ImageError",
                message=f"failed to copy: {text}{where if error.errno != errno.ENOSPC else ''}",
                errno=error.errno,
            )
        )
        return
    answer(_Answer(names=names))


if __name__ == "__main__":
    main()
