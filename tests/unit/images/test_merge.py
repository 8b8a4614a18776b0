"""Layers to one tree: whiteouts, opaque directories, links, and what replaces what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.errors import ImageInvalid
from fargatelite.images.layer import Kind, Record
from fargatelite.images.merge import Inode, merge_layers, read_file_node, walk


def f(path: str) -> Record:
    return Record(path.encode(), Kind.FILE, 0o644)


def d(path: str, mode: int = 0o755) -> Record:
    return Record(path.encode(), Kind.DIRECTORY, mode)


def s(path: str, target: str) -> Record:
    return Record(path.encode(), Kind.SYMLINK, link=target.encode())


def h(path: str, target: str) -> Record:
    return Record(path.encode(), Kind.HARD_LINK, link=target.encode())


def gone(path: str) -> Record:
    return Record(path.encode(), Kind.WHITEOUT)


def opaque(path: str) -> Record:
    return Record(path.encode(), Kind.OPAQUE)


def show(root: Inode) -> dict[str, object]:
    """Path to: layer of a file, `[mode]` of a directory, `-> target` of a link."""
    found: dict[str, object] = {}

    def visit(node: Inode, path: str) -> None:
        for name, child in sorted((node.children or {}).items()):
            at = f"{path}{name.decode()}"
            if child.children is not None:
                found[at + "/"] = [oct(child.record.mode)]
                visit(child, at + "/")
            elif child.record.kind == Kind.SYMLINK:
                found[at] = "-> " + child.record.link.decode()
            else:
                found[at] = child.layer

    visit(root, "")
    return found


DIR = ["0o755"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], {}),
        ([[f("a")], [f("a")]], {"a": 1}),
        ([[f("a/b")]], {"a/": DIR, "a/b": 0}),
        ([[f("a/b"), f("c")], [gone("a/b")]], {"a/": DIR, "c": 0}),
        ([[f("a/b"), f("a/c")], [gone("a")]], {}),
        ([[f("a")], [gone("a")], [f("a")]], {"a": 2}),
        ([[], [gone("not/there"), gone("x")]], {}),
        ([[f("a")], [gone("a/b")]], {"a": 0}),
        # Of one layer, whiteouts hide what lower layers have, wherever they stand.
        ([[f("a/b")], [f("a/b"), gone("a/b")]], {"a/": DIR, "a/b": 1}),
        ([[f("a/b")], [d("a"), f("a/new"), gone("a")]], {"a/": DIR, "a/new": 1}),
        ([[f("a/b"), f("a/c")], [opaque("a"), f("a/d")]], {"a/": DIR, "a/d": 1}),
        ([[f("a/b"), f("a/c")], [f("a/d"), opaque("a")]], {"a/": DIR, "a/d": 1}),
        ([[f("a/b/c")], [opaque("")]], {}),
        ([[f("a/b")], [opaque("a"), gone("a/b")], [f("a/b")]], {"a/": DIR, "a/b": 2}),
        ([[d("a", 0o700), f("a/b")], [d("a", 0o711)]], {"a/": ["0o711"], "a/b": 0}),
        ([[d("a", 0o700), f("a/b")], [f("a/c")]], {"a/": ["0o700"], "a/b": 0, "a/c": 1}),
        ([[f("a/b")], [f("a")]], {"a": 1}),
        ([[f("a")], [d("a"), f("a/b")]], {"a/": DIR, "a/b": 1}),
        ([[f("a/b")], [s("a", "x")]], {"a": "-> x"}),
        ([[s("a", "x"), f("x/b")], [d("a")]], {"a/": DIR, "x/": DIR, "x/b": 0}),
        ([[f("x")], [s("a", "x")], [f("a")]], {"a": 2, "x": 0}),
        # The parent is a link: the member goes where it leads, within the image.
        ([[s("lib", "usr/lib")], [f("lib/so")]], {"lib": "-> usr/lib", "usr/": DIR, "usr/lib/": DIR,
                                                  "usr/lib/so": 1}),
        ([[d("usr/lib"), s("lib", "/usr/lib"), f("lib/so")], [gone("lib/so")]],
         {"lib": "-> /usr/lib", "usr/": DIR, "usr/lib/": DIR}),
        ([[d("usr/lib"), s("lib", "usr/lib"), f("lib/so")], [opaque("lib")]],
         {"lib": "-> usr/lib", "usr/": DIR, "usr/lib/": DIR}),
        ([[s("a/up", "../../../.."), f("a/up/x")]], {"a/": DIR, "a/up": "-> ../../../..", "x": 0}),
        ([[s("a", "b"), s("b", "./c/."), f("a/x")]],
         {"a": "-> b", "b": "-> ./c/.", "c/": DIR, "c/x": 0}),
        ([[s("a", "/"), f("a/a/a/x")]], {"a": "-> /", "x": 0}),
        # A whiteout of a link removes the link.
        ([[d("x"), f("x/y"), s("a", "x")], [gone("a")]], {"x/": DIR, "x/y": 0}),
        ([[f("a")], [h("b", "a")]], {"a": 0, "b": 0}),
        ([[f("a")], [h("b", "a"), gone("a")]], None),
        ([[f("a")], [h("b", "a")], [gone("a")]], {"b": 0}),
        ([[f("a")], [h("b", "a")], [f("a")]], {"a": 2, "b": 0}),
        ([[f("a"), h("a", "a")]], {"a": 0}),
        ([[f("a"), f("b/c")], [h("b", "a")]], {"a": 0, "b": 0}),
        ([[s("a", "x"), h("b", "a")]], {"a": "-> x", "b": "-> x"}),
        ([[f("x/f"), s("a", "x"), h("b", "a/f")]], {"a": "-> x", "b": 0, "x/": DIR, "x/f": 0}),
    ],
)  # fmt: skip
def test_merge(layers: list[list[Record]], expected: dict[str, object] | None) -> None:
    if expected is None:
        with pytest.raises(ImageInvalid, match="hard link b'b' to b'a', which is not there"):
            merge_layers(layers)
    else:
        assert show(merge_layers(layers)) == expected


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([h("b", "a")], "hard link b'b' to b'a', which is not there"),
        ([h("b", "a"), f("a")], "which is not there"),
        ([d("a"), h("b", "a")], "hard link b'b' to a directory"),
        ([h("b", "")], "to a directory"),
        ([f("a"), f("a/b")], "b'a' leads through what is no directory"),
        ([s("a", "a"), f("a/b")], "too many links in b'a'"),
        ([s("a", "b"), s("b", "a"), f("a/x")], "too many links"),
        ([s("a", "a/" * 2000), f("a/x")], "links in|too many links"),
        ([s("a", "a/a/a/a/a/a/a/a"), f("a/x")], "links in|too many links"),
    ],
)
def test_trees_that_cannot_be(records: list[Record], words: str) -> None:
    with pytest.raises(ImageInvalid, match=words):
        merge_layers([records])


def test_root_has_the_last_layers_attributes_and_all_its_files() -> None:
    root = merge_layers([[d("", 0o700), f("a")], [d("", 0o711), f("b")]])
    assert root.record.mode == 0o711
    assert sorted(root.children or {}) == [b"a", b"b"]


def test_walk_counts_links_and_meets_each_inode_once() -> None:
    root = merge_layers([[f("a/b"), h("c", "a/b"), h("a/d", "c"), d("a/e"), d("a/g"), s("l", "a")]])
    links = {node.record.path: node.links for node in list(walk(root)) if node.record.path}
    assert links == {b"a/b": 3, b"a/e": 2, b"a/g": 2, b"l": 1}
    assert root.links == 3
    assert root.children is not None
    assert root.children[b"a"].links == 4
    # Removing a name lowers the count of those that stay.
    again = merge_layers([[f("a"), h("b", "a"), h("c", "a")], [gone("b")]])
    assert [node.links for node in list(walk(again))] == [2, 2]


def test_walk_is_not_recursive() -> None:
    deep = "/".join(["d"] * 2000)
    assert sum(1 for _ in walk(merge_layers([[f(deep + "/f")]]))) == 2002


@pytest.mark.parametrize(
    ("records", "path", "found"),
    [
        ([f("etc/passwd")], "etc/passwd", "etc/passwd"),
        ([s("etc", "usr/etc"), f("usr/etc/passwd")], "etc/passwd", "usr/etc/passwd"),
        ([s("etc/passwd", "../real"), f("real")], "etc/passwd", "real"),
        ([s("etc/passwd", "/real"), f("real")], "etc/passwd", "real"),
        ([s("etc/passwd", "../../../../real"), f("real")], "etc/passwd", "real"),
        ([s("etc/passwd", "real"), f("etc/real")], "etc/passwd", "etc/real"),
        ([s("etc/passwd", "passwd")], "etc/passwd", None),
        ([s("etc/passwd", "a"), s("etc/a", "passwd")], "etc/passwd", None),
        ([s("etc", "etc")], "etc/passwd", None),
        ([d("etc/passwd")], "etc/passwd", None),
        ([s("etc/passwd", "/")], "etc/passwd", None),
        ([s("etc/passwd", "..")], "etc/passwd", None),
        ([Record(b"etc/passwd", Kind.FIFO)], "etc/passwd", None),
        ([f("etc")], "etc/passwd", None),
        ([], "etc/passwd", None),
    ],
)
def test_file_of_the_image(records: list[Record], path: str, found: str | None) -> None:
    node = read_file_node(merge_layers([records]), path.encode())
    assert (node.record.path.decode() if node is not None else None) == found


_NAME = st.sampled_from(["a", "b", "a/a", "a/b", "b/a", "a/a/b", "c"])
_RECORD = st.one_of(
    _NAME.map(f), _NAME.map(d), st.builds(s, _NAME, st.sampled_from(["a", "/b", "../a", ".", ""])),
    st.builds(h, _NAME, _NAME), _NAME.map(gone), _NAME.map(opaque),
)  # fmt: skip


@given(st.lists(st.lists(_RECORD, max_size=8), max_size=4))
def test_any_layers_give_a_tree_or_invalid(layers: list[list[Record]]) -> None:
    try:
        root = merge_layers(layers)
    except ImageInvalid:
        return
    nodes = list(walk(root))
    assert len({id(node) for node in nodes}) == len(nodes)
    names = 0
    for node in nodes:
        assert node.record.kind not in (Kind.WHITEOUT, Kind.OPAQUE, Kind.HARD_LINK)
        assert (node.children is not None) == (node.record.kind == Kind.DIRECTORY)
        names += len(node.children or {})
    directories = [node for node in nodes if node.children is not None]
    others = [node for node in nodes if node.children is None]
    # Each directory but the root has one name, each other object as many as its links.
    assert names == len(directories) - 1 + sum(node.links for node in others)
    read_file_node(root, b"a/b")
