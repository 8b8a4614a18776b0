"""Fixtures that several folders share: images made here, a real registry, roots of their own."""

from __future__ import annotations

pytest_plugins = [
    "tests.fixtures.images",
    "tests.fixtures.host",
    "tests.fixtures.cli",
    "tests.fixtures.aws",
    "tests.fixtures.published",
]
