"""Rows of `benchmarks/results/NAME.json`: what was measured, beside whom, and whether it is enough.

Values are medians. `ratio` is `value / peer_value`; a goal speaks of one of them, so that the row
can say itself whether it is met. `schema.json` beside the results is made from these types.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.report import describe_machine, p50, p99

RESULTS = Path(__file__).parent / "results"
SCHEMA = RESULTS / "schema.json"
SCHEMED = ("launch", "cli", "pull", "inside", "density", "meter", "defences")
"""The files that it describes."""

PEERS = {
    "crun": ["crun", "--version"],
    "runc": ["runc", "--version"],
    "podman": ["podman", "--version"],
    "bwrap": ["bwrap", "--version"],
    "skopeo": ["skopeo", "--version"],
    "umoci": ["umoci", "--version"],
    "containerd": ["containerd", "--version"],
}


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One question and its answer. `n`, `least` and `p99` belong to `value`."""

    name: str
    unit: str
    value: float
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None
    n: int | None = None
    least: float | None = None
    p99: float | None = None
    peer_p99: float | None = None
    note: str | None = None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A file. `series` is what a plot is drawn from, where rows are not enough."""

    version: int = 1
    host: dict[str, str]
    versions: dict[str, str]
    rows: list[Row]
    series: dict[str, list[dict[str, float]]] | None = None


def judge(goal: str | None, value: float, ratio: float | None) -> bool | None:
    """Whether a goal is met: `value` or `ratio`, `<=` or `>=`, a number."""
    if goal is None:
        return None
    subject, sign, bound = goal.split()
    found = ratio if subject == "ratio" else value
    assert found is not None
    return found <= float(bound) if sign == "<=" else found >= float(bound)


def compare(
    name: str, unit: str, ours: Sequence[float], peer: str, theirs: Sequence[float],
    goal: str | None = None, note: str | None = None,
) -> Row:  # fmt: skip
    """A row about two contestants that alternated; printed."""
    ratio = p50(ours) / p50(theirs)
    return _shown(Row(
        name=name, unit=unit, value=p50(ours), peer=peer, peer_value=p50(theirs), ratio=ratio,
        goal=goal, met=judge(goal, p50(ours), ratio), n=len(ours), least=min(ours), p99=p99(ours),
        peer_p99=p99(theirs), note=note,
    ))  # fmt: skip


def state(
    name: str, unit: str, values: Sequence[float] | float, goal: str | None = None,
    note: str | None = None,
) -> Row:  # fmt: skip
    """A row about ours alone; printed."""
    several = [values] if isinstance(values, int | float) else list(values)
    return _shown(Row(
        name=name, unit=unit, value=p50(several), goal=goal, met=judge(goal, p50(several), None),
        n=len(several), least=min(several), p99=p99(several), note=note,
    ))  # fmt: skip


def _shown(row: Row) -> Row:
    peer = f"{row.peer} {row.peer_value:.4g}" if row.peer else ""
    ratio = f"{row.ratio:.2f}x" if row.ratio is not None else ""
    goal = f"{row.goal}: {'met' if row.met else 'NOT MET'}" if row.goal else ""
    print(
        f"  {row.name:<58} {row.value:9.4g} {row.unit:<7} p99 {row.p99:9.4g}   "
        f"{peer:<34} {ratio:>7}   {goal}",
        flush=True,
    )
    return row


def versions(names: Sequence[str]) -> dict[str, str]:
    """First lines of what peers say of themselves."""
    found = {}
    for name in names:
        try:
            done = subprocess.run(PEERS[name], capture_output=True, text=True, timeout=30)
        except FileNotFoundError:
            found[name] = "not installed"
            continue
        found[name] = (done.stdout or done.stderr).splitlines()[0]
    return found


def write_results(
    name: str,
    rows: Sequence[Row],
    peers: dict[str, str],
    series: dict[str, list[dict[str, float]]] | None = None,
) -> Path:
    """Writes `benchmarks/results/NAME.json`."""
    results = Results(host=describe_machine(), versions=peers, rows=list(rows), series=series)
    path = RESULTS / f"{name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    return path


def schema() -> bytes:
    """The JSON schema of the files."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Results)), indent=1) + b"\n"


def bars(title: str, unit: str, values: Sequence[tuple[str, float, bool]]) -> str:
    """Horizontal bars as SVG; ours (True) in another colour."""
    width, left, row = 760, 270, 26
    largest = max(value for _, value, _ in values)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {len(values) * row + 40}" '
        'font-family="sans-serif" font-size="13">',
        "<style>text{fill:#444}.o{fill:#2f6fdd}.p{fill:#a9a9a9}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>",
        f'<text x="0" y="18" font-weight="bold">{title} ({unit})</text>',
    ]
    for index, (label, value, is_ours) in enumerate(values):
        y = 32 + index * row
        length = max(1.0, (width - left - 70) * value / largest)
        out.append(
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{label}</text>'
            f'<rect class="{"o" if is_ours else "p"}" x="{left}" y="{y}" width="{length:.1f}" '
            f'height="18"/><text x="{left + length + 6:.1f}" y="{y + 14}">{value:.3g}</text>'
        )
    return "".join(out) + "</svg>\n"


if __name__ == "__main__":
    SCHEMA.write_bytes(schema())
