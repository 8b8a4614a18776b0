"""python -m benchmarks.tables: puts the figures of the results into docs/performance.md."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from benchmarks.rows import RESULTS, Results, Row

__all__ = ["DOCUMENT", "fill", "write_tables"]

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
_MARKED = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str) -> str:
    """The document with the tables of the results as they are."""
    return _MARKED.sub(lambda found: found[1] + _table(found[2]) + found[3], text)


def write_tables() -> None:
    """Rewrites the document."""
    DOCUMENT.write_text(fill(DOCUMENT.read_text()))


def _table(name: str) -> str:
    results = msgspec.json.decode((RESULTS / f"{name}.json").read_bytes(), type=Results)
    host = results.host
    about = "; ".join(f"{peer}: {said}" for peer, said in results.versions.items())
    lines = [
        f"{host['kernel']}, {host['cpu']}, {host['memory']}, load {host['load']} when it began, "
        f"commit {host['commit']}, {host['at'][:10]}." + (f" {about}." if about else ""),
        "",
        "| | ours | p99 | peer | peer's | ours / peer | goal | |",
        "|---|--:|--:|---|--:|--:|---|---|",
        *map(_line, results.rows),
        "",
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    cells = [
        row.name.strip(),
        f"{row.value:.4g} {row.unit}",
        "" if row.p99 is None else f"{row.p99:.4g}",
        row.peer or "",
        "" if row.peer_value is None else f"{row.peer_value:.4g}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        (row.goal or "").replace("<=", "≤").replace(">=", "≥"),
        "" if row.met is None else "met" if row.met else "**missed**",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    write_tables()
