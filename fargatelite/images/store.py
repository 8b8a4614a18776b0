"""The image store: layers once, an EROFS image each, one mount per host.

::

    <root>/VERSION
    layers/<diff id>/{blob,table}        a layer, unpacked in one pass
    digests/<digest>                     compressed digest -> diff id and sizes
    images/<image id>/{image.json,image.erofs}   and root/ where the kernel has no EROFS
    references/<sha256 of reference>     what a name meant at its last pull
    locks/, tmp/

Everything is published by rename, so what has a name is whole. Several processes share a store: a
lock per layer makes the second one wait and reuse.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from fargatelite.errors import ImageError, ImageNotFound, StateCorrupt
from fargatelite.images.credentials import (
    Credentials,
    RegistryConfig,
    find_credentials,
    is_plain_http,
)
from fargatelite.images.image import (
    Image,
    ImageBackend,
    ImageConfig,
    PullPolicy,
    PullProgress,
)
from fargatelite.images.layer import BLOCK_BYTES, LayerResult, read_table
from fargatelite.images.reference import Reference, parse_reference
from fargatelite.names import DiffId, Digest
from fargatelite.rundir import sync_directory

__all__ = ["ImageStore", "LayerEntry", "StoredImage", "StoredReference"]

STORE_VERSION = "1"
MAX_FILE_READ = 1024 * 1024  # /etc/passwd and /etc/group (CVE-2026-47262)

OnProgress = Callable[[PullProgress], None]


class LayerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a compressed digest turned out to hold."""

    version: int = 1
    diff_id: DiffId
    compressed_bytes: int
    blob_bytes: int


class StoredImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image, beside its files."""

    version: int = 1
    image_id: Digest
    config: ImageConfig
    diff_ids: tuple[DiffId, ...]
    blob_blocks: tuple[int, ...]
    compressed_bytes: int
    passwd: bytes
    group: bytes
    checksum: str | None = None
    """SHA-256 of this without it; None in one that an older fargatelite wrote."""

    def checksum_now(self) -> str:
        bare = msgspec.structs.replace(self, checksum=None)
        return hashlib.sha256(msgspec.json.encode(bare)).hexdigest()


class StoredReference(msgspec.Struct, frozen=True, kw_only=True):
    """What a name meant at its last pull or load."""

    version: int = 1
    reference: str
    digest: Digest
    resolved: str
    """What the registry's HEAD says: the index's digest where there is an index."""
    image_id: Digest
    platform: str
    is_loaded: bool = False


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_layer(path: Path) -> bool:
    return (path / "blob").is_file() and (path / "table").is_file()


class ImageStore:
    """See the module. Usable from any thread and from several processes."""

    def __init__(
        self,
        root: Path,
        *,
        config: RegistryConfig | None = None,
        backend: ImageBackend | str = ImageBackend.AUTO,
    ) -> None:
        self.root = root
        self.backend = ImageBackend(backend)
        self.config = config or RegistryConfig()
        self._cache: dict[str, StoredImage] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("layers", "digests", "images", "references", "locks", "tmp"):
            (root / name).mkdir(mode=0o700, exist_ok=True)
        version = root / "VERSION"
        if not version.exists():
            sync_directory(root)
            _replace(version, STORE_VERSION.encode())
        elif version.read_text().strip() != STORE_VERSION:
            raise StateCorrupt(
                f"image store {root} is of version {version.read_text().strip()!r}, this uses "
                f"{STORE_VERSION}; use another data root",
                path=root,
            )

    # ---- locks and scratch space ----

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Only one process works on `name` (a digest) at a time."""
        with self._flocked(_hex(name), fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory of the store's own file system, removed at the end; its lock tells `gc` that
        somebody works in it."""
        path, fd = self._make_scratch()
        try:
            yield path
        finally:
            os.close(fd)
            shutil.rmtree(path, ignore_errors=True)

    def _make_scratch(self) -> tuple[Path, int]:
        """The directory and the descriptor of its lock. `gc` may take it before it is locked."""
        while True:
            path = self.root / "tmp" / f"{os.getpid()}-{os.urandom(6).hex()}"
            path.mkdir(mode=0o700)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_nlink:
                return path, fd
            os.close(fd)

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Nothing is removed meanwhile. Of whoever adds to the store, or takes from it what no
        task has mounted yet."""
        with self._flocked("collect", fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Nobody is in `shared` meanwhile; False when somebody is, which is not waited for."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._flocked("collect", fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    @contextlib.contextmanager
    def _flocked(self, name: str, how: int) -> Iterator[None]:
        fd = os.open(self.root / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)

    # ---- layers ----

    def find_layer(self, digest: str) -> LayerEntry | None:
        """What is known of a compressed layer; None unless its blob and table are there."""
        try:
            entry = msgspec.json.decode(
                (self.root / "digests" / _hex(digest)).read_bytes(), type=LayerEntry
            )
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return entry if _is_layer(self.layer_directory(entry.diff_id)) else None

    def layer_directory(self, diff_id: str) -> Path:
        """Where a layer's blob and table are."""
        return self.root / "layers" / _hex(diff_id)

    def publish_layer(self, result: LayerResult) -> LayerEntry:
        """Takes a finished layer's files into the store."""
        for path in (result.blob, result.table):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        target = self.layer_directory(result.diff_id)
        holder = result.blob.parent / "publish"
        holder.mkdir(mode=0o700)
        os.rename(result.blob, holder / "blob")
        os.rename(result.table, holder / "table")
        sync_directory(holder)  # before it has its name: else a power cut may leave that alone
        try:
            os.rename(holder, target)
        except OSError:
            if not target.is_dir():
                raise
            if _is_layer(target):
                shutil.rmtree(holder)  # the same contents under another compression
            else:
                self.discard(target)
                os.rename(holder, target)
        sync_directory(target.parent)  # before anything refers to it
        entry = LayerEntry(
            diff_id=result.diff_id,
            compressed_bytes=result.compressed_bytes,
            blob_bytes=result.blob_bytes,
        )
        _replace(self.root / "digests" / _hex(result.digest), msgspec.json.encode(entry))
        return entry

    # ---- images ----

    def image_directory(self, image_id: str) -> Path:
        """Where an image's own files are."""
        return self.root / "images" / _hex(image_id)

    def read_image(self, image_id: str) -> StoredImage | None:
        cached = self._cache.get(image_id)
        directory = self.image_directory(image_id)
        if cached is not None:
            if directory.is_dir():
                return cached
            del self._cache[image_id]
            return None
        try:
            stored = self.read_image_file(image_id)
        except FileNotFoundError:
            return None
        self._cache[image_id] = stored
        return stored

    def read_image_file(self, image_id: str) -> StoredImage:
        """What the store keeps of an image beside its files.

        Raises: FileNotFoundError; StateCorrupt.
        """
        directory = self.image_directory(image_id)
        try:
            stored = msgspec.json.decode((directory / "image.json").read_bytes(), type=StoredImage)
        except msgspec.MsgspecError as error:
            raise StateCorrupt(
                f"{directory}/image.json: {error}; remove the image and pull it again",
                path=directory,
            ) from error
        if stored.checksum is not None and stored.checksum != stored.checksum_now():
            raise StateCorrupt(
                f"{directory}/image.json: wrong checksum; `fargatelite image verify --repair`",
                path=directory,
            )
        return stored

    def build_image(
        self, image_id: Digest, config: ImageConfig, layers: Sequence[LayerEntry]
    ) -> None:
        """Merges the layers and writes the image, unless it is there."""
        from fargatelite.images.erofs import write_erofs
        from fargatelite.images.merge import merge_layers, read_file_node

        directory = self.image_directory(image_id)
        if directory.is_dir():
            if all((directory / name).is_file() for name in ("image.json", "image.erofs")):
                return
            self.discard(directory)  # half removed by an older fargatelite
        root = merge_layers(
            [read_table(self.layer_directory(item.diff_id) / "table") for item in layers]
        )

        def read(path: bytes) -> bytes:
            node = read_file_node(root, path)
            if node is None or node.layer < 0:
                return b""
            blob = self.layer_directory(layers[node.layer].diff_id) / "blob"
            with open(blob, "rb") as file:
                file.seek(node.record.block * BLOCK_BYTES)
                return file.read(min(node.record.size, MAX_FILE_READ))

        blocks = tuple(item.blob_bytes // BLOCK_BYTES for item in layers)
        with self.scratch() as scratch:
            made = scratch / "image"
            made.mkdir(mode=0o700)
            write_erofs(root, blocks, made / "image.erofs")
            stored = StoredImage(
                image_id=image_id,
                config=config,
                diff_ids=tuple(item.diff_id for item in layers),
                blob_blocks=blocks,
                compressed_bytes=sum(item.compressed_bytes for item in layers),
                passwd=read(b"etc/passwd"),
                group=read(b"etc/group"),
            )
            stored = msgspec.structs.replace(stored, checksum=stored.checksum_now())
            _replace(made / "image.json", msgspec.json.encode(stored))
            fd = os.open(made / "image.erofs", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            sync_directory(made)
            try:
                os.rename(made, directory)
            except OSError:
                if not directory.is_dir():
                    raise
            sync_directory(directory.parent)

    def forget(self, image_id: str) -> None:
        """Drops what this process remembers of an image that has gone from the store."""
        self._cache.pop(image_id, None)

    # ---- references ----

    def _reference_path(self, reference: Reference, platform: str) -> Path:
        name = hashlib.sha256(f"{reference} {platform}".encode()).hexdigest()
        return self.root / "references" / name

    def record_reference(
        self,
        text: str,
        reference: Reference,
        digest: Digest,
        resolved: str,
        image_id: Digest,
        platform: str,
        *,
        is_loaded: bool = False,
    ) -> None:
        """Notes what a name means from now on."""
        _replace(
            self._reference_path(reference, platform),
            msgspec.json.encode(
                StoredReference(
                    reference=text,
                    digest=digest,
                    resolved=resolved,
                    image_id=image_id,
                    platform=platform,
                    is_loaded=is_loaded,
                )
            ),
        )

    def list_references(self) -> Iterator[Path]:
        """The files that hold names, for `read_reference`."""
        for path in sorted((self.root / "references").iterdir()):
            if not path.name.startswith("."):
                yield path

    def read_reference(self, path: Path) -> StoredReference | None:
        """A name's meaning; None when it was removed. Raises: StateCorrupt."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=StoredReference)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise StateCorrupt(f"{path}: {error}; pull the image again", path=path) from error

    def _image(self, stored: StoredReference, text: str) -> Image | None:
        found = self.read_image(stored.image_id)
        if found is None:
            return None
        return Image(
            reference=text,
            digest=stored.digest,
            image_id=stored.image_id,
            config=found.config,
            diff_ids=found.diff_ids,
            compressed_bytes=found.compressed_bytes,
            passwd=found.passwd,
            group=found.group,
        )

    def find(self, reference: str, platform: str = "linux/amd64") -> Image | None:
        """The image that a name meant at its last pull or load; None when it is not there."""
        parsed = parse_reference(reference)
        stored = self.read_reference(self._reference_path(parsed, platform))
        return self._image(stored, reference) if stored is not None else None

    def list_images(self) -> list[Image]:
        """All images that have a name, by name."""
        found = []
        for path in self.list_references():
            stored = self.read_reference(path)
            image = self._image(stored, stored.reference) if stored is not None else None
            if image is not None:
                found.append(image)
        return sorted(found, key=lambda image: image.reference)

    # ---- pull ----

    def pull(
        self,
        reference: str,
        *,
        policy: PullPolicy | str = PullPolicy.ALWAYS,
        platform: str = "linux/amd64",
        on_progress: OnProgress | None = None,
        cancelled: threading.Event | None = None,
        credentials: Credentials | None = None,
    ) -> Image:
        """The image, fetched as the policy says.

        `always` asks the registry for the digest by one HEAD and takes what is in the store; an
        image that was loaded is used without asking. `credentials` are for this reference's
        registry, instead of those that the host has for it. Fetching and parsing happen in a child
        process without capabilities.
        Raises: ImageError and its kin; InvalidReference.
        """
        parsed = parse_reference(reference)
        policy = PullPolicy(policy)
        image, stored = self._use(reference, parsed, platform)
        if policy is PullPolicy.NEVER:
            if image is None:
                raise ImageNotFound(
                    f"{reference} is not in the store, and the pull policy is never; "
                    "pull or load it first"
                )
            return image
        if image is not None and stored is not None:
            is_fixed = parsed.digest is not None or stored.is_loaded
            if policy is PullPolicy.MISSING or is_fixed:
                return image
            if self._ask(parsed, credentials) == stored.resolved:
                image, again = self._use(reference, parsed, platform)  # gc may have taken it
                if image is not None and again == stored:
                    return image
        from fargatelite.images.worker import run_worker

        run_worker(self, reference, platform, on_progress, cancelled, credentials)
        image, _ = self._use(reference, parsed, platform)
        if image is None:
            raise ImageError(f"{reference} is not in the store after its pull")
        return image

    def _use(
        self, text: str, reference: Reference, platform: str
    ) -> tuple[Image | None, StoredReference | None]:
        """The image that a name means, noted as used now; None when it is not there. And what the
        name says."""
        with self.shared():
            stored = self.read_reference(self._reference_path(reference, platform))
            image = self._image(stored, text) if stored is not None else None
            if image is not None:
                self.note_use(image.image_id)
        return image, stored

    def note_use(self, image_id: str) -> None:
        os.utime(self.image_directory(image_id))

    def _ask(self, reference: Reference, credentials: Credentials | None) -> str | None:
        from fargatelite.images.registry import Registry

        registry = Registry(
            reference,
            credentials or find_credentials(reference.registry, self.config),
            insecure=is_plain_http(reference.registry, self.config),
        )
        try:
            resolved = registry.resolve()
        finally:
            registry.close()
        return resolved.digest if resolved is not None else None

    def load(self, path: Path) -> list[Image]:
        """Images of a docker-archive or an OCI layout (directory or tar), by the names in it.

        Raises: ImageInvalid.
        """
        from fargatelite.images.worker import run_load

        names = run_load(self, path)
        found = [self.find(name) for name in names]
        return [image for image in found if image is not None]

    # ---- what tasks take of it ----

    def unpack_directory(self, image: Image, path: str, target: Path, id_base: int) -> bool:
        """Copies a directory of the image with all that is in it, owner and mode included, into the
        empty `target`; False when the image has none there. A link is none (contract 2.6).

        `id_base`: the host's id of the container's root.
        Raises: ImageError.
        """
        from fargatelite.images.directory import unpack_image
        from fargatelite.images.merge import find_directory, merge_layers

        blobs = [self.layer_directory(diff_id) / "blob" for diff_id in image.diff_ids]
        root = merge_layers([read_table(blob.with_name("table")) for blob in blobs])
        found = find_directory(root, path.encode("utf-8", "surrogateescape"))
        if found is None:
            return False
        unpack_image(found, blobs, target, id_base)
        return True

    # ---- removal ----

    def remove(self, reference: str) -> None:
        """Removes a name, and what only it needed.

        Raises: ImageNotFound.
        """
        removed = 0
        for path in self.list_references():
            stored = self.read_reference(path)
            if stored is None:
                continue
            same_name = reference == stored.reference
            if same_name or reference in (stored.digest, stored.image_id, stored.resolved):
                path.unlink()
                removed += 1
        if not removed:
            raise ImageNotFound(f"{reference} is not in the store; see `fargatelite image list`")
        self.gc()

    def discard(self, path: Path) -> None:
        """Removes a directory of the store. It goes out of sight whole: a layer or an image of
        which a part is missing would be taken for one that is there."""
        gone = self.root / "tmp" / f"gone-{os.getpid()}-{os.urandom(6).hex()}"
        os.rename(path, gone)
        shutil.rmtree(gone)

    def remove_scratch(self) -> bool:
        """Removes what crashed pulls left; False when a pull is going on."""
        for path in (self.root / "tmp").iterdir():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # its pull ended
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except BlockingIOError:
                return False
            finally:
                os.close(fd)
        return True

    def gc(self) -> list[str]:
        """Removes images without a name, layers without an image, and what crashed pulls left; the
        ids of those images. See `images.collect`."""
        from fargatelite.images.collect import collect_images

        return collect_images(self).images
