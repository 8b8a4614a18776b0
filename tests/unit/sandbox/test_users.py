"""User resolution: Docker's rules, and what must never become root."""

from __future__ import annotations

import pytest

from fargatelite.errors import SandboxFailed
from fargatelite.sandbox.users import User, resolve_user

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www:/var/www:/usr/sbin/nologin
app:x:1000:1001::/home/app:/bin/sh
broken line
big:x:4294967296:0::/:/bin/sh
4294967296:x:0:0::/:/bin/sh
nohome:x:7:7:::
"""
GROUP = b"root:x:0:\nwww-data:x:33:\nstaff:x:50:app,other\naudio:x:29:app\napp:x:1001:\n"


@pytest.mark.field("containerDefinitions[].user")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", User(uid=0, gid=0, home="/root")),
        ("root", User(uid=0, gid=0, home="/root")),
        ("app", User(uid=1000, gid=1001, groups=(50, 29), home="/home/app")),
        ("1000", User(uid=1000, gid=1001, groups=(50, 29), home="/home/app")),
        ("app:staff", User(uid=1000, gid=50, home="/home/app")),
        ("app:0", User(uid=1000, gid=0, home="/home/app")),
        ("4242", User(uid=4242, gid=0)),
        ("4242:4243", User(uid=4242, gid=4243)),
        ("0:www-data", User(uid=0, gid=33, home="/root")),
        ("nohome", User(uid=7, gid=7)),
    ],
)
def test_resolves(spec: str, expected: User) -> None:
    assert resolve_user(spec, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "2147483648",
        "4294967295",
        "4294967296",
        "18446744073709551616",
        "-1",
        "00",
        "0x0",
        "+0",
        "65535:0",
        "0:65535",
        "0:-1",
        "big",
        "ghost",
        "app:ghost",
        "app:",
        "app:staff:x",
    ],
)
def test_refuses_what_could_wrap_or_does_not_exist(spec: str) -> None:
    """CVE-2024-40635, CVE-2026-46680: ids beyond 31/32 bit became root, or a passwd name."""
    with pytest.raises(SandboxFailed):
        resolve_user(spec, PASSWD, GROUP)


def test_an_image_without_passwd_has_a_root() -> None:
    assert resolve_user("", b"", b"") == User(uid=0, gid=0)


def test_unknown_user_is_named() -> None:
    with pytest.raises(SandboxFailed, match="unable to find user nobody: no matching entries"):
        resolve_user("nobody", b"", b"")
