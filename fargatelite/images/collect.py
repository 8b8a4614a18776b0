"""Removes what of the image store nobody needs: by name, by last use, by a budget.

An image without a name goes, and so does one that no task has used for long or, oldest first, one
that does not fit into the budget; then the layers that no image has left, which is where the bytes
are. One that a task has mounted never goes, nor one that was used a moment ago: its task may have
pulled it and be about to mount it.

It has the store for itself meanwhile (`ImageStore.alone`): pulls and loads wait for the moment that
this takes, and while one of them goes on nothing is removed, since its layers have no image yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fargatelite.errors import StateCorrupt
from fargatelite.images.mounted import is_bound
from fargatelite.names import DiffId

if TYPE_CHECKING:
    from fargatelite.images.store import ImageStore

__all__ = ["JUST_USED_S", "CollectedImages", "collect_images"]

JUST_USED_S = 600.0
"""From its pull to its mount an image is a task's, and nothing says so; that takes milliseconds,
with several images of a task as long as the pull of the others."""


class CollectedImages(msgspec.Struct, kw_only=True):
    """What went, or with `dry_run` would go."""

    images: list[str] = []
    """Ids of those that went for want of a name."""
    evicted: list[str] = []
    """Names of those that went by last use or budget."""
    layers: list[str] = []
    freed_bytes: int = 0
    """Of layers."""


class _Found(msgspec.Struct, kw_only=True):
    """An image of the store; `diff_ids` None when its own file is gone or damaged."""

    name: str
    diff_ids: frozenset[str] | None
    references: list[tuple[Path, str]]
    used_at_ns: int


def collect_images(
    store: ImageStore,
    *,
    is_used: Callable[[str], bool] = lambda name: False,
    unused_s: float | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
) -> CollectedImages:
    """Removes images without a name and, of those with one, what was not used for `unused_s` and
    what is beyond `max_bytes` of layers, least recently used first; then layers without an image.

    `is_used` tells of an image's hexadecimal id whether a task has it mounted. Nothing is done
    while a pull or load goes on, in whatever process.
    Raises: StateCorrupt for a name or an image with a name that cannot be read.
    """
    done = CollectedImages()
    with store.alone() as is_alone:
        if not is_alone or not store.remove_scratch():
            return done
        images = _find_images(store)
        kept = {name: image for name, image in images.items() if _is_whole_and_named(image)}
        evicted = _choose(store, kept, is_used, unused_s, max_bytes)
        for name, image in sorted(images.items()):
            if name in kept and name not in evicted:
                continue
            # Unlike EROFS, whose mount holds its files, an unpacked directory is the task's own.
            if is_bound(store.image_directory(f"sha256:{name}")):
                kept[name] = image
                continue
            kept.pop(name, None)
            if name in evicted:
                done.evicted += [text for _, text in image.references]
                for path, _ in image.references if not dry_run else ():
                    path.unlink(missing_ok=True)
            else:
                done.images.append(f"sha256:{name}")
            if not dry_run:
                store.forget(f"sha256:{name}")
                store.discard(store.image_directory(f"sha256:{name}"))
        _collect_layers(store, kept, done, dry_run=dry_run)
    return done


def _is_whole_and_named(image: _Found) -> bool:
    return image.diff_ids is not None and bool(image.references)


def _find_images(store: ImageStore) -> dict[str, _Found]:
    references: dict[str, list[tuple[Path, str]]] = {}
    for path in (store.root / "references").iterdir():
        if path.name.startswith("."):
            path.unlink(missing_ok=True)  # what a killed process wrote aside
            continue
        stored = store.read_reference(path)
        if stored is not None:
            references.setdefault(_hex(stored.image_id), []).append((path, stored.reference))
    found: dict[str, _Found] = {}
    for path in (store.root / "images").iterdir():
        named = references.get(path.name, [])
        diff_ids = None
        try:
            diff_ids = store.read_image_file(f"sha256:{path.name}").diff_ids
        except FileNotFoundError:
            pass  # its name stays: the next pull makes it anew
        except StateCorrupt:
            if named:
                raise  # which layers it has is not known: `image verify --repair`
        found[path.name] = _Found(
            name=path.name,
            diff_ids=None if diff_ids is None else frozenset(_hex(item) for item in diff_ids),
            references=named,
            used_at_ns=path.stat().st_mtime_ns,
        )
    return found


def _choose(
    store: ImageStore,
    images: dict[str, _Found],
    is_used: Callable[[str], bool],
    unused_s: float | None,
    max_bytes: int | None,
) -> set[str]:
    """Which images go by age or budget."""
    if unused_s is None and max_bytes is None:
        return set()
    now_ns = time.time_ns()
    sizes: dict[str, int] = {}
    users: dict[str, set[str]] = {}
    for name, image in images.items():
        for layer in image.diff_ids or ():
            users.setdefault(layer, set()).add(name)
            if layer not in sizes:
                sizes[layer] = _size_of(store.layer_directory(f"sha256:{layer}"))
    total = sum(sizes.values())
    chosen: set[str] = set()
    for image in sorted(images.values(), key=lambda item: item.used_at_ns):
        age_s = (now_ns - image.used_at_ns) / 1e9
        is_old = unused_s is not None and age_s > unused_s
        is_beyond = max_bytes is not None and total > max_bytes
        if not (is_old or is_beyond) or age_s < JUST_USED_S or is_used(image.name):
            continue
        chosen.add(image.name)
        for layer in image.diff_ids or ():
            users[layer].discard(image.name)
            if not users[layer]:
                total -= sizes[layer]
    return chosen


def _collect_layers(
    store: ImageStore, kept: dict[str, _Found], done: CollectedImages, *, dry_run: bool
) -> None:
    wanted: set[str] = set()
    for image in kept.values():
        wanted |= image.diff_ids or set()
    for path in sorted((store.root / "layers").iterdir()):
        if path.name not in wanted:
            done.layers.append(DiffId(f"sha256:{path.name}"))
            done.freed_bytes += _size_of(path)
            if not dry_run:
                store.discard(path)
    if not dry_run:
        for path in (store.root / "digests").iterdir():
            if store.find_layer(f"sha256:{path.name}") is None:
                path.unlink()


def _size_of(layer: Path) -> int:
    total = 0
    for name in ("blob", "table"):
        try:
            total += os.stat(layer / name).st_blocks * 512
        except FileNotFoundError:
            continue  # `image verify` tells of it
    return total


def _hex(digest: str) -> str:
    return digest.partition(":")[2]
