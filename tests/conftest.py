"""Fixtures that several folders share: images made here, a real registry, roots of their own."""

from __future__ import annotations

import hypothesis

pytest_plugins = [
    "tests.fixtures.images",
    "tests.fixtures.host",
    "tests.fixtures.cli",
    "tests.fixtures.aws",
    "tests.fixtures.published",
]

# An example's time says how busy the machine is, and nothing about us.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")
