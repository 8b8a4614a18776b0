"""Reads all that the store keeps and compares it with the checksums taken when it came in.

A disk that flips a bit, or a file system that lost a write in a power cut, shows nowhere else: the
digests of a layer are those of its compressed bytes, which are not kept. So each file's blocks have
a CRC in the layer's table, the table has one of its own, `image.json` a digest, and an EROFS image
is the same bytes whenever it is made of the same tables.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from fargatelite.errors import FargateliteError, StateCorrupt
from fargatelite.images.image import PullPolicy
from fargatelite.images.layer import BLOCK_BYTES, Kind, Record, read_table
from fargatelite.images.mounted import is_bound
from fargatelite.images.store import ImageStore, LayerEntry

__all__ = ["Damage", "Verified", "repair", "verify"]

_STEP_BYTES = 2**20
MAX_DAMAGE = 1000  # a blob of zeros has as many as it has files


class Damage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Something in the store that is not as it came."""

    path: str
    """Relative to the store."""
    what: str
    references: tuple[str, ...] = ()
    """Images that need it."""
    file: str | None = None
    """The file of the image, where it is the contents of one."""


class Verified(msgspec.Struct, kw_only=True, rename="camel"):
    """What was read, and what is wrong with it."""

    layers: int = 0
    images: int = 0
    read_bytes: int = 0
    unchecked: list[str] = []
    """Layers of an older fargatelite, whose files have no checksum; a new pull gives them one."""
    damage: list[Damage] = []
    repaired: list[str] = []
    """References that were pulled again."""
    failures: list[str] = []
    """What could not be repaired, and why."""


class _Check:
    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self.found = Verified()
        self.references: dict[str, list[str]] = {}
        self.by_layer: dict[str, set[str]] = {}

    def note(
        self, path: Path, what: str, references: Iterable[str] = (), file: str | None = None
    ) -> None:
        if len(self.found.damage) < MAX_DAMAGE:
            self.found.damage.append(
                Damage(
                    path=str(path.relative_to(self.store.root)), what=what,
                    references=tuple(sorted(references)), file=file,
                )
            )  # fmt: skip

    def run(self) -> Verified:
        self._check_references()
        self._check_images()
        for path in sorted((self.store.root / "layers").iterdir()):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                self._check_layer(path, self.by_layer.get(path.name, set()))
        for path in sorted((self.store.root / "digests").iterdir()):
            if path.name.startswith("."):
                continue
            try:
                msgspec.json.decode(path.read_bytes(), type=LayerEntry)
            except msgspec.MsgspecError as error:
                self.note(path, f"cannot be read: {error}")
        return self.found

    def _check_references(self) -> None:
        for path in self.store.list_references():
            try:
                stored = self.store.read_reference(path)
            except StateCorrupt as error:
                self.note(path, f"cannot be read: {error.__cause__}")
                continue
            if stored is not None:
                self.references.setdefault(stored.image_id, []).append(stored.reference)

    def _check_images(self) -> None:
        for path in sorted((self.store.root / "images").iterdir()):
            image_id = f"sha256:{path.name}"
            references = self.references.get(image_id, [])
            try:
                stored = self.store.read_image_file(image_id)
            except FileNotFoundError:
                continue  # removed meanwhile
            except StateCorrupt as error:
                self.note(path / "image.json", str(error), references)
                continue
            self.found.images += 1
            missing = False
            for diff_id in stored.diff_ids:
                layer = self.store.layer_directory(diff_id)
                self.by_layer.setdefault(layer.name, set()).update(references)
                if not layer.is_dir():
                    missing = True
                    self.note(layer, "is missing", references)
            if not missing:
                self._check_erofs(path / "image.erofs", stored.diff_ids, stored.blob_blocks)

    def _check_erofs(self, path: Path, diff_ids: tuple[str, ...], blocks: tuple[int, ...]) -> None:
        """By making it again: the tables say all that is in it, and they have checksums."""
        from fargatelite.images.erofs import write_erofs
        from fargatelite.images.merge import merge_layers

        references = self.references.get(f"sha256:{path.parent.name}", [])
        try:
            tables = [read_table(self.store.layer_directory(item) / "table") for item in diff_ids]
        except (StateCorrupt, FileNotFoundError):
            return  # the layer's own damage
        with self.store.scratch() as scratch:
            again = scratch / "image.erofs"
            write_erofs(merge_layers(tables), blocks, again)
            try:
                self.found.read_bytes += path.stat().st_size
                if not _is_equal(path, again):
                    self.note(path, "is not what its layers make", references)
            except FileNotFoundError:
                self.note(path, "is missing", references)

    def _check_layer(self, path: Path, references: set[str]) -> None:
        self.found.layers += 1
        try:
            records = read_table(path / "table")
        except (StateCorrupt, FileNotFoundError) as error:
            self.note(path / "table", str(error), references)
            return
        files = [record for record in records if record.kind == Kind.FILE and record.size]
        end = max((item.block + -(-item.size // BLOCK_BYTES) for item in files), default=0)
        try:
            fd = os.open(path / "blob", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.note(path / "blob", "is missing", references)
            return
        try:
            size = os.fstat(fd).st_size
            if size != end * BLOCK_BYTES:
                self.note(
                    path / "blob", f"has {size} bytes instead of {end * BLOCK_BYTES}", references
                )
                return
            # Read past the page cache's copy, which may be right where the disk is wrong.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            unchecked = False
            for record in files:
                if record.crc is None:
                    unchecked = True
                    continue
                self._check_file(fd, path, record, references)
            if unchecked:
                self.found.unchecked.append(f"sha256:{path.name}")
        finally:
            os.close(fd)

    def _check_file(self, fd: int, path: Path, record: Record, references: set[str]) -> None:
        name = record.path.decode("utf-8", "replace")
        length = -(-record.size // BLOCK_BYTES) * BLOCK_BYTES
        try:
            crc = _crc_of(fd, record.block * BLOCK_BYTES, length)
        except OSError as error:
            self.note(path / "blob", f"cannot be read: {error.strerror}", references, name)
            return
        self.found.read_bytes += length
        if crc != record.crc:
            what = f"blocks {record.block} to {record.block + length // BLOCK_BYTES - 1} changed"
            self.note(path / "blob", what, references, name)


def _crc_of(fd: int, offset: int, length: int) -> int:
    from isal.isal_zlib import crc32

    crc = 0
    while length:
        data = os.pread(fd, min(length, _STEP_BYTES), offset)
        if not data:
            return -1
        crc = crc32(data, crc)
        offset += len(data)
        length -= len(data)
    return crc


def _is_equal(one: Path, other: Path) -> bool:
    with open(one, "rb") as first, open(other, "rb") as second:
        while True:
            a, b = first.read(_STEP_BYTES), second.read(_STEP_BYTES)
            if a != b:
                return False
            if not a:
                return True


def verify(store: ImageStore) -> Verified:
    """Reads every layer, image and name of the store; changes nothing.

    Raises: OSError when the store itself cannot be listed.
    """
    return _Check(store).run()


def _pieces(store: ImageStore, damage: Damage) -> Iterator[Path]:
    """What has to go so that a pull makes it again: the layer or image as a whole, or the name."""
    parts = Path(damage.path).parts
    yield store.root.joinpath(*parts[:2])
    if parts[0] == "layers":  # the images over it keep their names, and are made again
        for path in (store.root / "images").iterdir():
            with contextlib.suppress(FileNotFoundError, StateCorrupt):
                wanted = store.read_image_file(f"sha256:{path.name}").diff_ids
                if f"sha256:{parts[1]}" in wanted:
                    yield path


def repair(store: ImageStore, found: Verified) -> None:
    """Takes what is damaged out of the store and pulls again the images that need it; adds to
    `found.repaired` and `found.failures`.

    A live task keeps the files that it has mounted, damaged as they are, until it ends: they go
    from the store by a rename. What was loaded is to be loaded again.
    """
    wanted = {reference for damage in found.damage for reference in damage.references}
    names = []
    for path in store.list_references():
        with contextlib.suppress(StateCorrupt):
            stored = store.read_reference(path)
            if stored is not None and stored.reference in wanted:
                names.append(stored)
    pieces = {path: None for damage in found.damage for path in _pieces(store, damage)}
    with store.scratch() as scratch:
        for number, path in enumerate(pieces):
            if path.parent.name == "images" and is_bound(path):
                found.failures.append(f"{path.name[:12]}: a task has its files; stop it first")
                continue
            if path.parent.name == "references":
                found.failures.append(
                    f"{path.name[:12]}: which name this was is lost; pull it again"
                )
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, scratch / str(number))
            store.forget(f"sha256:{path.name}")
    for stored in names:
        if stored.is_loaded:
            found.failures.append(f"{stored.reference} was loaded: load it again")
            continue
        try:
            store.pull(stored.reference, policy=PullPolicy.ALWAYS, platform=stored.platform)
        except (FargateliteError, OSError) as error:
            found.failures.append(f"{stored.reference}: {error}")
        else:
            found.repaired.append(stored.reference)
