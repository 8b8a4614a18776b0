"""Merges the tables of an image's layers into one tree: whiteouts and opaque directories are
resolved here, once, as overlayfs or an extraction layer by layer would.

Paths are components of a tree of ours, never of a file system, so a link can lead nowhere but to
another node of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fargatelite.errors import ImageInvalid
from fargatelite.images.layer import Kind, Record

__all__ = ["Inode", "find_directory", "merge_layers", "read_file_node", "walk"]

MAX_LINKS = 40  # followed in one path, as the kernel does (MAXSYMLINKS)


class Inode:
    """One file, directory or other object. Several names may share one (hard links)."""

    __slots__ = ("children", "layer", "links", "number", "record")

    def __init__(self, record: Record, layer: int) -> None:
        self.record = record
        self.layer = layer
        self.children: dict[bytes, Inode] | None = {} if record.kind == Kind.DIRECTORY else None
        self.links = 0
        self.number = 0


def _new_directory(mode: int = 0o755) -> Inode:
    return Inode(Record(b"", Kind.DIRECTORY, mode), -1)


class _Tree:
    def __init__(self) -> None:
        self.root = _new_directory()

    def resolve(self, path: bytes, *, create: bool, budget: int = MAX_LINKS) -> Inode | None:
        """The directory at `path`, links followed within the tree; None when it is not there."""
        stack = [self.root]
        parts = path.split(b"/")[::-1] if path else []
        while parts:
            part = parts.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if len(stack) > 1:
                    stack.pop()
                continue
            children = stack[-1].children
            assert children is not None
            node = children.get(part)
            if node is None:
                if not create:
                    return None
                node = children[part] = _new_directory()
            if node.record.kind == Kind.SYMLINK:
                budget -= 1
                if budget < 0:
                    raise ImageInvalid(f"too many links in {path[:80]!r}")
                target = node.record.link
                if target.startswith(b"/"):
                    del stack[1:]
                parts += target.split(b"/")[::-1]
                if len(parts) > 4096:
                    raise ImageInvalid(f"links in {path[:80]!r} grow without end")
                continue
            if node.children is None:
                if not create:
                    return None
                raise ImageInvalid(f"{path[:80]!r} leads through what is no directory")
            stack.append(node)
        return stack[-1]

    def find(self, path: bytes) -> Inode | None:
        """The object at `path`; a link at its end is not followed."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self.resolve(parent_path, create=False)
        if parent is None or parent.children is None:
            return None
        return parent.children.get(name) if name else self.root

    def remove(self, path: bytes) -> None:
        parent_path, _, name = path.rpartition(b"/")
        parent = self.resolve(parent_path, create=False)
        if parent is not None and parent.children is not None:
            parent.children.pop(name, None)

    def clear(self, path: bytes) -> None:
        directory = self.resolve(path, create=False)
        if directory is not None and directory.children is not None:
            directory.children.clear()

    def add(self, record: Record, layer: int) -> None:
        if not record.path:
            children = self.root.children
            self.root = Inode(record, layer)
            self.root.children = children
            return
        parent_path, _, name = record.path.rpartition(b"/")
        parent = self.resolve(parent_path, create=True)
        assert parent is not None
        assert parent.children is not None
        if record.kind == Kind.HARD_LINK:
            target = self.find(record.link)
            if target is None:
                raise ImageInvalid(
                    f"hard link {record.path[:80]!r} to {record.link[:80]!r}, which is not there"
                )
            if target.children is not None:
                raise ImageInvalid(f"hard link {record.path[:80]!r} to a directory")
            parent.children[name] = target
            return
        old = parent.children.get(name)
        new = Inode(record, layer)
        if old is not None and old.children is not None and new.children is not None:
            new.children = old.children  # a directory over one changes its attributes only
        parent.children[name] = new


def merge_layers(tables: Sequence[Iterable[Record]]) -> Inode:
    """The root of the merged tree; `Inode.layer` says in which layer's blob a file's bytes are.

    Whiteouts of a layer hide what lower layers have, wherever in the archive they stand.
    Raises: ImageInvalid.
    """
    tree = _Tree()
    for index, table in enumerate(tables):
        records = table if isinstance(table, list) else list(table)
        for record in records:
            if record.kind == Kind.WHITEOUT:
                tree.remove(record.path)
            elif record.kind == Kind.OPAQUE:
                tree.clear(record.path)
        for record in records:
            if record.kind not in (Kind.WHITEOUT, Kind.OPAQUE):
                tree.add(record, index)
    return tree.root


def walk(root: Inode) -> Iterator[Inode]:
    """Every inode once, a directory before what it holds; sets `links`, which are complete when the
    walk is. Not recursive."""
    seen: set[int] = set()
    stack = [root]
    root.links = 2
    while stack:
        node = stack.pop()
        yield node
        if node.children is None:
            continue
        for child in node.children.values():
            if child.children is not None:
                node.links += 1
                child.links = 2
                stack.append(child)
                continue
            if id(child) not in seen:
                seen.add(id(child))
                child.links = 0
                stack.append(child)
            child.links += 1


def find_directory(root: Inode, path: bytes) -> Inode | None:
    """The directory at `path`; None when there is none, or only a link to one at its end."""
    tree = _Tree()
    tree.root = root
    node = tree.find(path.strip(b"/"))
    return node if node is not None and node.children is not None else None


def read_file_node(root: Inode, path: bytes) -> Inode | None:
    """The regular file at `path`, links followed within the image; None when there is none."""
    tree = _Tree()
    tree.root = root
    for _ in range(MAX_LINKS):
        try:
            node = tree.find(path)
        except ImageInvalid:
            return None  # links in a circle: ELOOP in the container, and no file here
        if node is None or node.record.kind != Kind.SYMLINK:
            return node if node is not None and node.record.kind == Kind.FILE else None
        target = node.record.link
        parent = path.rpartition(b"/")[0]
        path = target.lstrip(b"/") if target.startswith(b"/") else parent + b"/" + target
    return None
