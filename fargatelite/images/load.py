"""Loads images from a docker-archive (`docker save`) or an OCI layout, directory or tar.

An archive is read through the same bounded parser as a layer, entry by entry, into memory for the
small documents and by offset for the layers; nothing is extracted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from fargatelite.errors import DigestMismatch, ImageInvalid
from fargatelite.images import tar
from fargatelite.images.layer import LayerWriter, clean_path
from fargatelite.images.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    parse_manifest,
)
from fargatelite.images.worker import publish_image
from fargatelite.names import Digest, is_digest

if TYPE_CHECKING:
    from fargatelite.images.store import ImageStore, LayerEntry

__all__ = ["load_images"]

PLATFORM = "linux/amd64"
CHUNK_BYTES = 1 << 20
_MAX_ARCHIVE_ENTRIES = 100_000
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class _Files(Protocol):
    def read(self, path: str, limit: int) -> bytes: ...
    def stream(self, path: str) -> Iterator[bytes]: ...
    def has(self, path: str) -> bool: ...


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    def _open(self, path: str) -> int:
        # A stranger wrote the names: no way out, and no FIFO that nobody writes to.
        root, full = os.path.realpath(self._root), os.path.realpath(self._root / path)
        if os.path.commonpath((root, full)) != root or not os.path.isfile(full):
            raise ImageInvalid(f"{self._root} has no file {path[:100]!r}")
        return os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    def has(self, path: str) -> bool:
        return (self._root / path).is_file()

    def read(self, path: str, limit: int) -> bytes:
        with open(self._open(path), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ImageInvalid(f"{path} has over {limit} bytes")
        return data

    def stream(self, path: str) -> Iterator[bytes]:
        with open(self._open(path), "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


class _Archive:
    """The members of a tar file by path: offset and length."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        state = tar.PaxState()
        with open(path, "rb") as file:
            while block := file.read(tar.BLOCK):
                if len(block) < tar.BLOCK:
                    raise ImageInvalid(f"{path} ends in the middle of a header")
                header = tar.parse_header(block)
                if header is None:
                    break
                padded = -(-header.size // tar.BLOCK) * tar.BLOCK
                if header.kind in (tar.PAX, tar.PAX_GLOBAL, tar.LONG_NAME, tar.LONG_LINK):
                    if header.size > tar.MAX_PAX_BYTES:
                        raise ImageInvalid(f"{path}: an extended header of {header.size} bytes")
                    data = file.read(padded)[: header.size]
                    LayerWriter.extend(state, header.kind, data)
                    continue
                entry = tar.apply_pax(header, state)
                state.clear()
                name = clean_path(entry.path).decode("utf-8", "surrogateescape")
                if entry.kind in (0, tar.REGULAR):
                    self._members[name] = (file.tell(), entry.stored)
                elif entry.kind in (tar.SYMLINK, tar.HARD_LINK):
                    # docker save links equal layers to each other.
                    target = entry.link.decode("utf-8", "surrogateescape")
                    base = os.path.dirname(name) if entry.kind == tar.SYMLINK else ""
                    links[name] = os.path.normpath(os.path.join(base, target))
                if len(self._members) > _MAX_ARCHIVE_ENTRIES:
                    raise ImageInvalid(f"{path} has over {_MAX_ARCHIVE_ENTRIES} members")
                file.seek(-(-entry.stored // tar.BLOCK) * tar.BLOCK, os.SEEK_CUR)
        for name, target in links.items():
            if target in self._members:
                self._members.setdefault(name, self._members[target])

    def has(self, path: str) -> bool:
        return path in self._members

    def read(self, path: str, limit: int) -> bytes:
        if path not in self._members:
            raise ImageInvalid(f"{self._path} has no {path}")
        if self._members[path][1] > limit:
            raise ImageInvalid(f"{path} has over {limit} bytes")
        return b"".join(self.stream(path))

    def stream(self, path: str) -> Iterator[bytes]:
        if path not in self._members:
            raise ImageInvalid(f"{self._path} has no {path}")
        offset, left = self._members[path]
        with open(self._path, "rb") as file:
            file.seek(offset)
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise ImageInvalid(f"{self._path} ends in the middle of {path}")
                left -= len(chunk)
                yield chunk


class _DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


class _LayoutEntry(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    annotations: dict[str, str] | None = None


class _Layout(msgspec.Struct, frozen=True):
    manifests: tuple[_LayoutEntry, ...]


def _blob(digest: str) -> str:
    if not is_digest(digest):
        raise ImageInvalid(f"digest {digest[:80]!r} is no sha256 digest")
    return f"blobs/sha256/{digest.partition(':')[2]}"


def _load_layer(
    store: ImageStore, files: _Files, path: str, media_type: str | None, digest: str | None
) -> LayerEntry:
    found = store.find_layer(digest) if digest is not None else None
    if found is not None:
        return found
    chunks = files.stream(path)
    first = next(chunks, b"")
    if media_type is None:
        suffix = {_GZIP: "+gzip", _ZSTD[:2]: "+zstd"}.get(first[:2], "")
        media_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
    with store.scratch() as scratch, contextlib.ExitStack() as stack:
        writer = LayerWriter(scratch, media_type)
        stack.callback(writer.abort)
        writer.feed(first)
        for chunk in chunks:
            writer.feed(chunk)
        result = writer.finish()
        if digest is not None and result.digest != digest:
            raise DigestMismatch(f"layer {path} has digest {result.digest}, expected {digest}")
        return store.publish_layer(result)


def _load_layout(store: ImageStore, files: _Files, fallback: str) -> list[str]:
    try:
        index = msgspec.json.decode(files.read("index.json", MAX_MANIFEST_BYTES), type=_Layout)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ImageInvalid(f"index.json: {error}") from error
    names = []
    for entry in index.manifests:
        data = files.read(_blob(entry.digest), MAX_MANIFEST_BYTES)
        top = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
        if top != entry.digest:
            raise DigestMismatch(f"manifest has digest {top}, expected {entry.digest}")
        parsed = parse_manifest(data, "", PLATFORM)
        if isinstance(parsed, Descriptor):
            chosen = parsed.digest
            data = files.read(_blob(chosen), MAX_MANIFEST_BYTES)
            found = f"sha256:{hashlib.sha256(data).hexdigest()}"
            if found != chosen:
                raise DigestMismatch(f"manifest has digest {found}, expected {chosen}")
            parsed = parse_manifest(data, "", PLATFORM)
        if isinstance(parsed, Descriptor):
            raise ImageInvalid("an index that leads to another index")
        config = files.read(_blob(parsed.config.digest), MAX_CONFIG_BYTES)
        if f"sha256:{hashlib.sha256(config).hexdigest()}" != parsed.config.digest:
            raise DigestMismatch(f"configuration is not {parsed.config.digest}")
        layers = [
            _load_layer(store, files, _blob(item.digest), item.media_type, item.digest)
            for item in parsed.layers
        ]
        note = entry.annotations or {}
        name = note.get("io.containerd.image.name") or note.get("org.opencontainers.image.ref.name")
        # A bare tag (skopeo, umoci): named after the layout.
        if not name:
            name = f"{fallback}:latest"
        elif "/" not in name and ":" not in name:
            name = f"{fallback}:{name}"
        publish_image(
            store, name, PLATFORM, top, Digest(parsed.config.digest), config, layers,
            is_loaded=True,
        )  # fmt: skip
        names.append(name)
    return names


def _load_docker(store: ImageStore, files: _Files, fallback: str) -> list[str]:
    try:
        images = msgspec.json.decode(
            files.read("manifest.json", MAX_MANIFEST_BYTES), type=tuple[_DockerImage, ...]
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ImageInvalid(f"manifest.json: {error}") from error
    names = []
    for image in images:
        config = files.read(image.config, MAX_CONFIG_BYTES)
        image_id = Digest(f"sha256:{hashlib.sha256(config).hexdigest()}")
        layers = [_load_layer(store, files, path, None, None) for path in image.layers]
        for name in image.repo_tags or (f"{fallback}:latest",):
            # An archive has no manifest digest; the configuration's stands for it.
            publish_image(store, name, PLATFORM, image_id, image_id, config, layers, is_loaded=True)
            names.append(name)
    return names


def load_images(store: ImageStore, path: Path) -> tuple[str, ...]:
    """Loads every image in `path`; returns their names.

    Raises: ImageInvalid when it is neither a layout nor an archive; DigestMismatch.
    """
    files: _Files = _Directory(path) if path.is_dir() else _Archive(path)
    stem = path.name.removesuffix(".tar").lower()
    if files.has("manifest.json"):
        return tuple(_load_docker(store, files, f"localhost/{stem}"))
    if files.has("index.json"):
        return tuple(_load_layout(store, files, f"localhost/{stem}"))
    raise ImageInvalid(
        f"{path} is neither an OCI layout (index.json) nor a docker-archive (manifest.json)"
    )
