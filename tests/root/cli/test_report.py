"""The report in a browser: Debian's Chromium draws it, light and dark, and this looks at it."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from fargatelite import Settings
from tests.fixtures.cli import CommandLine
from tests.fixtures.lives import write_life

pytestmark = [pytest.mark.root]
TASK = "0123456789abcdef" * 2
Colour = tuple[int, int, int]
# The names in report/page.py: --paper, --c0, --c1, --limit.
LIGHT = {"paper": (0xFB, 0xFB, 0xF9), "c0": (0x2F, 0x6F, 0xDD), "c1": (0xC2, 0x57, 0x1A),
         "limit": (0xC2, 0x41, 0x0C)}  # fmt: skip
DARK = {"paper": (0x12, 0x15, 0x1B), "c0": (0x6E, 0xA2, 0xFF), "c1": (0xF5, 0x9A, 0x5B),
        "limit": (0xFB, 0x92, 0x3C)}  # fmt: skip


def read_png(path: Path) -> tuple[int, int, list[bytes]]:
    """Width, height, and rows of RGB bytes of an 8-bit PNG (ISO/IEC 15948)."""
    data, at, packed = path.read_bytes(), 8, b""
    width, height, depth, kind = struct.unpack_from(">IIBB", data, 16)
    assert (depth, kind) in ((8, 2), (8, 6))
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw, size = zlib.decompress(packed), 3 if kind == 2 else 4
    stride, before, rows = width * size, bytearray(width * size), []
    for number in range(height):
        start = number * (stride + 1)
        line = bytearray(raw[start + 1 : start + 1 + stride])
        _unfilter(raw[start], line, before, size)
        rows.append(bytes(line) if size == 3 else _without_alpha(line))
        before = line
    return width, height, rows


def _unfilter(kind: int, line: bytearray, before: bytearray, size: int) -> None:
    for index in range(len(line)):
        left = line[index - size] if index >= size else 0
        up, corner = before[index], before[index - size] if index >= size else 0
        if kind == 1:
            line[index] = (line[index] + left) & 255
        elif kind == 2:
            line[index] = (line[index] + up) & 255
        elif kind == 3:
            line[index] = (line[index] + (left + up) // 2) & 255
        elif kind == 4:
            estimate = left + up - corner
            distances = [(abs(estimate - value), place) for place, value in
                         enumerate((left, up, corner))]  # fmt: skip
            line[index] = (line[index] + (left, up, corner)[min(distances)[1]]) & 255


def _without_alpha(line: bytearray) -> bytes:
    kept = bytearray(line)
    del kept[3::4]
    return bytes(kept)


def count(rows: list[bytes], wanted: Colour) -> int:
    """Pixels of (nearly) this colour: lines are smoothed."""
    exact = bytes(wanted)
    return sum(
        1
        for row in rows
        for at in range(0, len(row), 3)
        if row[at : at + 3] == exact
        or all(abs(row[at + part] - wanted[part]) < 24 for part in range(3))
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(
    fargatelite: CommandLine, settings: Settings, tmp_path: Path, scheme: str
) -> None:
    write_life(settings, TASK, seconds=300)
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    done = fargatelite("report", TASK[:8], "-o", page)
    assert (done.returncode, done.stderr) == (0, "")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--hide-scrollbars", f"--user-data-dir={tmp_path / scheme}",
        f"--blink-settings=preferredColorScheme={1 if scheme == 'light' else 0}",
    ]  # fmt: skip
    shot = [*command, "--window-size=900,1000", f"--screenshot={picture}", page.as_uri()]
    subprocess.run(shot, check=True, capture_output=True, timeout=60)
    width, height, rows = read_png(picture)
    assert (width, height) == (900, 1000)
    colours = LIGHT if scheme == "light" else DARK
    assert rows[2][:3] == bytes(colours["paper"])
    # Curves of two containers and dashed limits that are as wide as the charts.
    assert count(rows, colours["c0"]) > 300
    assert count(rows, colours["c1"]) > 300
    assert count(rows, colours["limit"]) > 300
    dump = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], check=True, capture_output=True, timeout=60
    ).stdout.decode()
    assert dump.count("<svg") == 4
    assert "OutOfMemoryError" in dump
