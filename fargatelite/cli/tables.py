"""How tables, sizes and times look. rich draws on a terminal; a pipe gets plain columns."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import IO, Any

__all__ = [
    "format_bytes",
    "format_duration",
    "format_money",
    "is_terminal",
    "make_printable",
    "print_json",
    "print_table",
]


def is_terminal(stream: IO[str]) -> bool:
    """Whether a person looks at this stream."""
    return stream.isatty()


def make_printable(text: str) -> str:
    """What strangers wrote (image names, registries' messages) with control characters as `\\x1b`:
    it must not drive the user's terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def print_json(value: Any) -> None:
    """One JSON document on stdout, with keys as given."""
    import msgspec  # here, so that `--help` does without

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    title: str | None = None,
    stream: IO[str] | None = None,
) -> None:
    """A table; `right` names the columns to align right."""
    out = stream or sys.stdout
    cells = [list(map(str, row)) for row in rows]
    if is_terminal(out):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=title, title_justify="left", box=None, pad_edge=False, header_style="bold"
        )
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left")
        for row in cells:
            table.add_row(*(Text(make_printable(cell)) for cell in row))
        Console(file=out).print(table)
        return
    if title:
        out.write(f"{title}\n")
    widths = [
        max(len(column), *(len(row[index]) for row in cells), 0)
        for index, column in enumerate(columns)
    ]
    for row in [list(columns), *cells]:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ]
        out.write("  ".join(parts).rstrip() + "\n")


def format_bytes(count: int) -> str:
    """Binary units, three digits: `17.4 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_duration(seconds: float) -> str:
    """`850 ms`, `12.3 s`, `4m05s`, `2h03m`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def format_money(amount: Decimal, currency: str = "USD") -> str:
    """Ten decimals: rows are exact, rounding is for the invoice (contract 7.1)."""
    return f"{amount:.10f} {currency}"
