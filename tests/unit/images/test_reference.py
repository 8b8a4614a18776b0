"""Image names: the grammar, the defaults, and nothing else gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.errors import InvalidReference
from fargatelite.images.reference import parse_reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("nginx", "docker.io", "library/nginx", "latest", None),
        ("nginx:1.25", "docker.io", "library/nginx", "1.25", None),
        ("user/app", "docker.io", "user/app", "latest", None),
        ("docker.io/nginx", "docker.io", "library/nginx", "latest", None),
        ("localhost/app", "localhost", "app", "latest", None),
        ("localhost:5000/a/b/c:x", "localhost:5000", "a/b/c", "x", None),
        ("127.0.0.1:5000/app", "127.0.0.1:5000", "app", "latest", None),
        ("[::1]:5000/app:1", "[::1]:5000", "app", "1", None),
        ("example.com/a__b/c-d.e:T_1.2-3", "example.com", "a__b/c-d.e", "T_1.2-3", None),
        (f"nginx@{DIGEST}", "docker.io", "library/nginx", None, DIGEST),
        (f"example.com/app:1@{DIGEST}", "example.com", "app", "1", DIGEST),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:7",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com", "team/app", "7", None,
        ),
    ],
)  # fmt: skip
def test_parts(
    text: str, registry: str, repository: str, tag: str | None, digest: str | None
) -> None:
    found = parse_reference(text)
    assert (found.registry, found.repository, found.tag, found.digest) == (
        registry, repository, tag, digest,
    )  # fmt: skip


def test_digest_decides_over_tag() -> None:
    assert parse_reference(f"a/b:1@{DIGEST}").target == DIGEST
    assert parse_reference("a/b:1").target == "1"
    assert parse_reference("a/b").target == "latest"


@pytest.mark.parametrize(
    "text",
    [
        "", "a" * 1025, ":", "@", "/", "a:", "a//b", "/a", "a/", "a@", "UPPER", "a/B", "a b",
        "a\n", "a:1\n", "a:tag with space", "a:-x", "a:" + "t" * 129, "a@sha256:12",
        "a@" + DIGEST.upper(), "a@" + DIGEST + "\n", "a@sha512:" + "ab" * 64, "a@@" + DIGEST,
        "../a", "a/../b", "example.com/../a", "example.com:x/a", "example.com:/a",
        "user:password@example.com/a", "http://example.com/a", "exa_mple.com/a", "-a.com/b",
        "a___b", "a..b", "example.com/" + "a" * 256, "a?b", "a#b", "a%2fb", "é", "a:é", "a:\u0663",
        "[::1/a", "a.com\r\nX: y/b",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match="invalid image reference"):
        parse_reference(text)


@given(st.text(max_size=80) | st.from_regex(r"[a-zA-Z0-9./:@_\[\]-]{1,80}", fullmatch=True))
def test_any_text_is_parsed_or_refused_and_prints_as_what_it_is(text: str) -> None:
    try:
        found = parse_reference(text)
    except InvalidReference:
        return
    assert parse_reference(str(found)) == found
    # What becomes part of a URL cannot change its shape.
    assert not set(str(found)) & set(" \t\r\n?#%\\")
    assert ".." not in found.repository.split("/")
