"""Whatever a file is, the command line says so in a line or a list of problems: no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fixtures.cli import CommandLine

DEEP = 200_000
CASES: dict[str, bytes] = {
    "empty": b"",
    "spaces": b" \n\t ",
    "binary": bytes(range(256)) * 64,
    "nulls": b"\0" * 4096,
    "elf": b"\x7fELF" + b"\0" * 100,
    "utf-16": '{"family": "a"}'.encode("utf-16"),
    "latin-1": '{"family": "caf\xe9"}'.encode("latin-1"),
    "surrogate": b'{"family": "\\ud800", "containerDefinitions": []}',
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep member": b'{"family": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "number": b"17",
    "huge number": b'{"family": "a", "cpu": 1' + b"0" * 10_000 + b"}",
    "string": b'"text"',
    "twice": b'{"family": "a", "family": "b"}',
    "not a number": b'{"family": NaN}',
    "wrong types": b'{"family": 1, "containerDefinitions": {"a": [null]}, "volumes": "x"}',
    "null members": b'{"family": null, "containerDefinitions": [null, null]}',
    "yaml": b"family: app\ncontainerDefinitions: []\n",
    "terminal": b'{"family": "\\u001b[2J", "containerDefinitions": [{"\\u001b]0;x\\u0007": 1}]}',
}
COMMANDS = (("run",), ("run", "--dry-run"), ("definition", "validate"), ("definition", "register"))


def check(ran: object) -> None:
    code, out, err = ran.returncode, ran.stdout, ran.stderr  # type: ignore[attr-defined]
    assert code in (2, 125), (code, out, err)
    assert out == ""
    assert "Traceback" not in err
    assert "this is a bug" not in err
    assert "\x1b" not in err
    assert 0 < len(err) < 20_000


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_any_contents(fargatelite: CommandLine, tmp_path: Path, command: tuple[str, ...]) -> None:
    for name, data in CASES.items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(data)
        try:
            check(fargatelite(*command, path))
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_is_no_file(
    fargatelite: CommandLine, tmp_path: Path, command: tuple[str, ...]
) -> None:
    large = tmp_path / "large.json"
    with open(large, "wb") as file:
        file.write(b'{"family": "')
        file.truncate(100 * 2**20)
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "dangling.json").symlink_to("nothing")
    for path in (
        large, tmp_path, tmp_path / "fifo.json", tmp_path / "loop.json",
        tmp_path / "dangling.json", tmp_path / "none.json", Path("/dev/null"), Path("/dev/zero"),
        Path("/proc/self/mem"), tmp_path / ("x" * 300),
    ):  # fmt: skip
        check(fargatelite(*command, path))
