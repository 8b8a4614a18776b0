"""What an image is, once it is in the store: data only."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from fargatelite.names import DiffId, Digest

__all__ = ["Image", "ImageBackend", "ImageConfig", "PullPolicy", "PullProgress"]


class PullPolicy(StrEnum):
    """When the registry is asked."""

    ALWAYS = "always"
    MISSING = "missing"
    NEVER = "never"


class ImageBackend(StrEnum):
    """How an image gets mounted: from files, through loop devices, or unpacked to a directory.
    `auto` takes the first that the kernel has."""

    AUTO = "auto"
    FILE = "file"
    LOOP = "loop"
    DIRECTORY = "directory"


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says about running it (OCI image-spec, config). HEALTHCHECK is not here: ECS
    ignores it (contract 3.7)."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str | None = None
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    architecture: str = ""
    os: str = ""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image in the store. `digest` is the manifest's, `image_id` the configuration's.

    `passwd` and `group` are the image's own files, bounded, so that nobody reads them from a
    mounted file system.
    """

    reference: str
    digest: Digest
    image_id: Digest
    config: ImageConfig
    diff_ids: tuple[DiffId, ...]
    compressed_bytes: int
    passwd: bytes = b""
    group: bytes = b""


class PullProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a layer is; bytes are compressed ones. `phase`: `download`, `done`, `exists`, `image`
    (`layer` is then the image's id)."""

    reference: str
    layer: str
    done_bytes: int
    total_bytes: int
    phase: str
