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


_MIN_FOLDED = 12  # columns; a shortened task id stays in one piece


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
    stream: IO[str] | None = None,
) -> None:
    """A table; `right` names the columns to align right."""
    out = stream or sys.stdout
    # Also for a pipe: what a pager or a later `cat` shows is a terminal's in the end.
    cells = [[make_printable(str(cell)) for cell in row] for row in rows]
    if is_terminal(out):
        _draw(columns, cells, right, out)
        return
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


def _draw(
    columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str], out: IO[str]
) -> None:
    """Draws on a terminal. What does not fit is folded in the widest column of text; where that is
    not enough, each row is a block with a line for each cell: half an amount would be a wrong one.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, highlight=False)
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    texts = [index for index, column in enumerate(columns) if column not in right]
    folded = max(texts, key=lambda index: (widths[index], index))
    excess = sum(widths) + 2 * (len(columns) - 1) - console.width
    if excess > 0 and widths[folded] - excess < _MIN_FOLDED:
        label_width = max(map(cell_len, columns))
        for number, row in enumerate(cells):
            if number:
                console.print()
            for column, cell in zip(columns, row, strict=True):
                if cell:
                    label = Text(f"{column:<{label_width}}  ", style="bold")
                    console.print(Text.assemble(label, cell), soft_wrap=True)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=index != folded,
            overflow="fold",
        )
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


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
