"""Every parser of strangers' bytes, as a function of bytes that raises only what it says it does.

one.py runs one of them under atheris, run.py all;
tests/unit/test_fuzz_corpus.py runs the corpora through the same functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from fargatelite.errors import (
    ConfigurationInvalid,
    ImageInvalid,
    ImageNotFound,
    InvalidTaskDefinition,
    SandboxFailed,
    StateCorrupt,
)
from fargatelite.images.layer import LayerWriter, read_table
from fargatelite.images.manifest import parse_config, parse_manifest
from fargatelite.images.tar import parse_header, parse_pax
from fargatelite.meter.ledger import parse_ledger
from fargatelite.sandbox.plan import decode_plan, encode_plan
from fargatelite.sandbox.seccomp_profile import SeccompProfile, parse_profile, select_rules
from fargatelite.sandbox.users import resolve_user
from fargatelite.shim import read_exit_records
from fargatelite.taskdef.load import load_definition

__all__ = ["TARGETS"]

_PLAIN = "application/vnd.oci.image.layer.v1.tar"


def _layer(data: bytes) -> None:
    """A whole layer, from the first header to the table that the merge reads."""
    with tempfile.TemporaryDirectory() as directory:
        writer = LayerWriter(Path(directory), _PLAIN)
        try:
            writer.feed(data)
            result = writer.finish()
            for record in read_table(result.table):
                assert b".." not in record.path.split(b"/")
                assert not record.path.startswith(b"/")
        except ImageInvalid:
            return
        finally:
            writer.abort()


def _header(data: bytes) -> None:
    try:
        parse_header(data[:512].ljust(512, b"\0"))
    except ImageInvalid:
        return


def _pax(data: bytes) -> None:
    try:
        parse_pax(data)
    except ImageInvalid:
        return


def _manifest(data: bytes) -> None:
    try:
        parsed = parse_manifest(data, "", "linux/amd64")
    except (ImageInvalid, ImageNotFound):
        return
    assert parsed is not None


def _config(data: bytes) -> None:
    try:
        parse_config(data)
    except ImageInvalid:
        return


def _users(data: bytes) -> None:
    spec, _, rest = data.partition(b"\0")
    passwd, _, group = rest.partition(b"\0")
    try:
        user = resolve_user(spec.decode("utf-8", "replace"), passwd, group)
    except SandboxFailed:
        return
    assert all(0 <= number < 65536 for number in (user.uid, user.gid, *user.groups))


def _plan(data: bytes) -> None:
    try:
        plan = decode_plan(data)
    except ValueError:
        return
    assert decode_plan(encode_plan(plan)) == plan


def _exits(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            read_exit_records(Path(file.name))
        except StateCorrupt:
            return


def _ledger(data: bytes) -> None:
    try:
        parse_ledger(data)
    except StateCorrupt:
        return


def _definition(data: bytes) -> None:
    try:
        load_definition(data)
    except InvalidTaskDefinition:
        return


def _seccomp(data: bytes) -> None:
    try:
        profile = parse_profile(data, "fuzzed")
    except ConfigurationInvalid:
        return
    # As it goes through the record of a task.
    assert msgspec.json.decode(msgspec.json.encode(profile), type=SeccompProfile) == profile
    assert len(list(select_rules(profile, 0, "x86_64", "6.1.0"))) <= len(profile.rules)
    assert profile.entries("x86_64")[0] == "X86_64"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "layer": _layer,
    "header": _header,
    "pax": _pax,
    "manifest": _manifest,
    "config": _config,
    "users": _users,
    "plan": _plan,
    "exits": _exits,
    "ledger": _ledger,
    "definition": _definition,
    "seccomp": _seccomp,
}
