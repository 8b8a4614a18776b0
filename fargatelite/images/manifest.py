"""Manifests, indexes and image configurations: bytes from strangers to checked records."""

from __future__ import annotations

from typing import Any

import msgspec

from fargatelite.errors import ImageInvalid, ImageNotFound
from fargatelite.images.image import ImageConfig
from fargatelite.names import DiffId, Digest, is_digest

__all__ = ["ACCEPT", "Descriptor", "Manifest", "parse_config", "parse_manifest"]

MAX_MANIFEST_BYTES = 4 * 1024 * 1024  # ECR's limit (contract 6.8), and the distribution spec's
MAX_CONFIG_BYTES = 8 * 1024 * 1024  # history of a few hundred layers is some 100 KiB
MAX_LAYERS = 512
MAX_BLOB_BYTES = 1 << 40  # 1 TiB; what a layer may unpack to is bounded lower

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_KINDS = (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST)
ACCEPT = ", ".join(_KINDS)


class Platform(msgspec.Struct, frozen=True):
    """Of an index entry."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """Points to a blob or manifest."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image manifest, schema version 2."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class _Index(msgspec.Struct, frozen=True):
    manifests: tuple[Descriptor, ...]


class _Process(msgspec.Struct, frozen=True, rename="pascal"):
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    working_dir: str | None = None
    user: str | None = None
    stop_signal: str | None = None
    volumes: dict[str, Any] | None = None
    labels: dict[str, str] | None = None


class _RootFs(msgspec.Struct, frozen=True):
    type: str
    diff_ids: tuple[str, ...]


class _Config(msgspec.Struct, frozen=True):
    rootfs: _RootFs
    config: _Process | None = None
    architecture: str = ""
    os: str = ""


def _check(descriptor: Descriptor, what: str) -> None:
    if not is_digest(descriptor.digest):
        raise ImageInvalid(f"{what}: digest {descriptor.digest[:80]!r} is no sha256 digest")
    if not 0 <= descriptor.size <= MAX_BLOB_BYTES:
        raise ImageInvalid(f"{what}: size {descriptor.size} is outside 0..{MAX_BLOB_BYTES}")


def choose_platform(descriptors: tuple[Descriptor, ...], platform: str) -> Descriptor:
    """The entry of an index for `linux/amd64` or `linux/arm64`.

    Raises: ImageNotFound with the text that Fargate uses (contract 3.9).
    """
    system, _, architecture = platform.partition("/")
    for descriptor in descriptors:
        found = descriptor.platform
        if found is not None and (found.os, found.architecture) == (system, architecture):
            return descriptor
    raise ImageNotFound(
        f"image Manifest does not contain descriptor matching platform '{platform}'"
    )


def parse_manifest(data: bytes, content_type: str, platform: str) -> Manifest | Descriptor:
    """The manifest, or of an index the descriptor of the platform's manifest.

    Raises: ImageInvalid; ImageNotFound when the index lacks the platform. A document that is both
        manifest and index is refused (CVE-2021-41190).
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ImageInvalid(f"manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES}")
    try:
        raw = msgspec.json.decode(data)
        if not isinstance(raw, dict):
            raise ImageInvalid("manifest is not a JSON object")
        if "manifests" in raw and ("layers" in raw or "config" in raw):
            raise ImageInvalid("manifest has both layers and manifests; refused (CVE-2021-41190)")
        if raw.get("schemaVersion") != 2:
            raise ImageInvalid(f"manifest of schema version {raw.get('schemaVersion')!r}, not 2")
        served = content_type.partition(";")[0].strip()
        declared = raw.get("mediaType")
        kinds = (OCI_INDEX, DOCKER_LIST) if "manifests" in raw else (OCI_MANIFEST, DOCKER_MANIFEST)
        if declared is not None and declared not in kinds:
            raise ImageInvalid(f"manifest says that it is {str(declared)[:100]!r}, which it is not")
        # Other clients go by the header; generic types (application/json) say nothing.
        if served in _KINDS and served not in kinds:
            raise ImageInvalid(f"manifest is served as {served!r}, which it is not")
        if "manifests" in raw:
            chosen = choose_platform(msgspec.convert(raw, _Index).manifests, platform)
            _check(chosen, "index")
            return chosen
        manifest = msgspec.convert(raw, Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ImageInvalid(f"manifest: {error}") from error
    _check(manifest.config, "manifest: config")
    for layer in manifest.layers:
        _check(layer, "manifest: layer")
    if len(manifest.layers) > MAX_LAYERS:
        raise ImageInvalid(f"{len(manifest.layers)} layers; at most {MAX_LAYERS}")
    return manifest


def parse_config(data: bytes) -> tuple[ImageConfig, tuple[DiffId, ...]]:
    """The image's configuration and the diff ids of its layers.

    Raises: ImageInvalid.
    """
    try:
        raw = msgspec.json.decode(data, type=_Config)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ImageInvalid(f"image configuration: {error}") from error
    for diff_id in raw.rootfs.diff_ids:
        if not is_digest(diff_id):
            raise ImageInvalid(f"image configuration: diff id {diff_id[:80]!r} is no digest")
    process = raw.config or _Process()
    strings = [
        *(process.entrypoint or ()), *(process.cmd or ()), *(process.env or ()),
        *(process.volumes or ()), process.working_dir or "", process.user or "",
        process.stop_signal or "",
    ]  # fmt: skip
    if any("\0" in text for text in strings):
        raise ImageInvalid("image configuration: NUL byte in a command, variable, path or name")
    return (
        ImageConfig(
            entrypoint=process.entrypoint or None,
            cmd=process.cmd or None,
            env=process.env or (),
            working_dir=process.working_dir or "",
            user=process.user or "",
            stop_signal=process.stop_signal,
            volumes=tuple(process.volumes or ()),
            labels=process.labels or {},
            architecture=raw.architecture,
            os=raw.os,
        ),
        tuple(DiffId(text) for text in raw.rootfs.diff_ids),
    )


def digest_of(descriptor: Descriptor) -> Digest:
    """The checked digest of a descriptor."""
    return Digest(descriptor.digest)
