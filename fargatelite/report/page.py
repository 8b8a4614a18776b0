"""A task's report as one HTML page: no script, nothing from elsewhere, light and dark.

All text that a definition's author or a registry wrote is escaped; the page says so to browsers
too (a Content-Security-Policy that allows styles only).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from html import escape

from fargatelite.billing.bill import Bill
from fargatelite.billing.sizing import RightSizing
from fargatelite.report.charts import Series, draw_curves, draw_phases, format_span
from fargatelite.report.data import Curve, Moment, ReportData

__all__ = ["make_page"]

_COLOURS = 6
_SHORTEST_NS = 1_000_000_000

_STYLE = """
:root { color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1c2330; --soft: #5d6675; --line: #e2e4e8;
  --limit: #c2410c; --bad: #b91c1c; --good: #15803d; --bar: #3b6fd4;
  --c0: #2f6fdd; --c1: #c2571a; --c2: #11866f; --c3: #8b4fc9; --c4: #b8860b; --c5: #c0397b; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12151b; --card: #1a1f28; --ink: #e7eaf0; --soft: #98a2b3; --line: #2b323e;
  --limit: #fb923c; --bad: #f87171; --good: #4ade80; --bar: #6b9bf2;
  --c0: #6ea2ff; --c1: #f59a5b; --c2: #3ecfae; --c3: #c094f5; --c4: #e6b93f; --c5: #f27db4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 0 0 10px; }
.sub { color: var(--soft); margin: 4px 0 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px;
  margin: 22px 0; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 12px 14px; }
.tile b { display: block; font-size: 19px; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
section { padding: 16px 18px; margin: 14px 0; overflow-x: auto; }
.chart { width: 100%; height: auto; display: block; }
.grid { stroke: var(--line); stroke-width: 1; }
.tick { fill: var(--soft); font-size: 12px; }
.name { fill: var(--ink); }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.task { stroke: var(--ink); stroke-width: 1.2; stroke-opacity: .75; }
.limit { stroke: var(--limit); stroke-width: 1.4; stroke-dasharray: 6 4; }
.limit-text { fill: var(--limit); font-size: 12px; }
.moment { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.moment.oom, .moment.stop { stroke: var(--bad); }
.moment.health { stroke: var(--good); }
.phase { fill: var(--bar); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; color: var(--soft); font-size: 13px;
  margin-top: 6px; }
.key { display: inline-block; width: 14px; height: 3px; margin-right: 6px; vertical-align: middle;
  border-radius: 2px; }
.key.task { background: var(--ink); opacity: .75; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bad { color: var(--bad); } .good { color: var(--good); }
p { margin: 10px 0 0; }
footer { color: var(--soft); font-size: 13px; margin-top: 22px; }
""" + "".join(
    f".curve.c{number} {{ stroke: var(--c{number}); }} "
    f".key.c{number} {{ background: var(--c{number}); }}\n"
    for number in range(_COLOURS)
)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _vcpu(value: float) -> str:
    return f"{value:.3g}" if value else "0"


def _percent(value: float | Decimal) -> str:
    return f"{value * 100:.1f} %"


def _money(value: Decimal | None, currency: str) -> str:
    """For a tile: four digits that say something; the bill below has them all."""
    if value is None:
        return "unknown"
    shown = f"{float(value):.4g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{shown} {currency}" if "e" not in shown else f"{value:.9f} {currency}"


def _tile(value: str, label: str, css_class: str = "") -> str:
    return (
        f'<div class="tile"><b class="{css_class}">{escape(value)}</b>'
        f"<span>{escape(label)}</span></div>"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int]) -> str:
    """Cells are escaped; `right` are the numbers of columns of figures."""

    def cell(tag: str, number: int, text: str) -> str:
        css_class = ' class="n"' if number in right else ""
        return f"<{tag}{css_class}>{escape(text)}</{tag}>"

    head = "".join(cell("th", number, text) for number, text in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(cell("td", number, text) for number, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _css_class(number: int, curve: Curve) -> str:
    return "task" if curve.name is None else f"c{number % _COLOURS}"


def _legend(curves: Sequence[Curve]) -> str:
    keys = "".join(
        f'<span><i class="key {_css_class(number, curve)}"></i>'
        f"{escape(curve.name or 'task, all together')}</span>"
        for number, curve in enumerate(curves)
    )
    return f'<div class="legend">{keys}</div>'


def _charts(data: ReportData) -> str:
    if not data.curves:
        return _section("Use", "<p>Nothing was measured of this task.</p>")
    limit_vcpu = data.cpu_units / 1024 if data.cpu_units else None
    limit_bytes = data.memory_mib * 2**20 if data.memory_mib else None

    def series(member: str) -> list[Series]:
        return [
            (curve.name or "task", _css_class(number, curve), getattr(curve, member))
            for number, curve in enumerate(data.curves)
        ]

    cpu = draw_curves(
        title="CPU", series=series("cpu_vcpu"), length_ns=data.length_ns, limit=limit_vcpu,
        limit_text=f"limit {limit_vcpu:g} vCPU" if limit_vcpu else "", format_value=_vcpu,
        moments=data.moments, least_top=0.05,
    )  # fmt: skip
    memory = draw_curves(
        title="Memory", series=series("memory_bytes"), length_ns=data.length_ns, limit=limit_bytes,
        limit_text=f"limit {_bytes(limit_bytes)}" if limit_bytes else "", format_value=_bytes,
        moments=data.moments, least_top=2**20, is_binary=True,
    )  # fmt: skip
    legend = _legend(data.curves)
    detail = "means of minutes" if data.is_by_minute else "sampled every second"
    out = _section(f"CPU, vCPU ({detail})", cpu + legend)
    out += _section("Memory in use" + (", highest of a minute" if data.is_by_minute else ""),
                    memory + legend)  # fmt: skip
    task = [curve for curve in data.curves if curve.name is None]
    held = [value for curve in task for _, value in curve.throttled_share if value]
    if held:
        chart = draw_curves(
            title="Throttling", series=[("task", "c1", task[0].throttled_share)],
            length_ns=data.length_ns, limit=None, limit_text="",
            format_value=lambda value: f"{value * 100:.0f} %", moments=(), least_top=1.0,
        )  # fmt: skip
        out += _section("Throttling: periods of 100 ms in which the CPU limit held it back", chart)
    else:
        out += _section("Throttling", "<p>The CPU limit never held this task back.</p>")
    return out


def _events(moments: Sequence[Moment]) -> str:
    rows = [(format_span(round(m.at_ns / 1e9, 2)), m.subject, m.text) for m in moments]
    return _table(("At", "What", "Happened"), rows, (0,)) if rows else ""


def _bill(bill: Bill) -> str:
    currency = bill.currency
    lines = [
        (line.meter, f"{line.quantity:.8f}", line.unit, str(line.rate), f"{line.cost:.10f}")
        for line in bill.lines
    ]
    lines.append((f"total, {bill.billed_seconds} s billed", "", "", "", f"{bill.cost:.10f}"))
    out = _table(("Meter", "Quantity", "Unit", "Rate", f"Cost {currency}"), lines, (1, 3, 4))
    containers = [
        (
            item.name,
            "unknown" if item.cpu_seconds is None else f"{item.cpu_seconds:.3f}",
            "unknown" if item.memory_gb_seconds is None else f"{item.memory_gb_seconds:.3f}",
            "unknown" if item.memory_peak_bytes is None else _bytes(item.memory_peak_bytes),
            "unknown" if item.used_cost is None else f"{item.used_cost:.10f}",
            f"{item.cost:.10f}",
        )
        for item in bill.containers
    ]
    out += "<p></p>" + _table(
        ("Container", "CPU s", "GB s", "Peak", f"Used {currency}", f"Share {currency}"),
        containers,
        (1, 2, 3, 4, 5),
    )
    source = f"{bill.region}, prices of {bill.price_effective}: {bill.price_source}"
    return out + f'<p class="sub">{escape(source)}</p>'


def _sizing(sizing: RightSizing | None, currency: str) -> str:
    if sizing is None:
        return ""
    rows = [
        ("CPU, 99 % of seconds below", f"{sizing.cpu_p99_vcpu:.3f} vCPU"),
        ("Memory, highest", _bytes(sizing.memory_peak_bytes)),
        ("Margin on top", _percent(sizing.margin)),
        ("Held back by its CPU limit", "yes" if sizing.is_throttled else "no"),
        ("This size, a month of 730 h", f"{sizing.monthly_cost:.2f} {currency}"),
    ]
    if sizing.cpu_units is None or sizing.memory_mib is None or sizing.monthly_saving is None:
        rows.append(("Cheapest size that holds it", "none of Fargate's"))
    else:
        size = f"{sizing.cpu_units / 1024:g} vCPU, {sizing.memory_mib / 1024:g} GB"
        rows.append(("Cheapest size that holds it", size))
        rows.append(("Saves a month", f"{sizing.monthly_saving:.2f} {currency}"))
    return _table(("", ""), rows, (1,))


def _tiles(data: ReportData) -> str:
    bill = data.bill
    sizing = bill.right_sizing
    tiles = [
        _tile(_money(bill.cost, bill.currency), f"on Fargate, {bill.billed_seconds} s billed"),
        _tile(_money(bill.used_cost, bill.currency), "of it was used"),
    ]
    if bill.idle_share is not None:
        idle = "bad" if bill.idle_share > Decimal("0.5") else ""
        tiles.append(_tile(_percent(bill.idle_share), "paid for and not used", idle))
    if sizing is not None and sizing.monthly_saving is not None:
        good = "good" if sizing.monthly_saving > 0 else ""
        tiles.append(
            _tile(f"{sizing.monthly_saving:.2f} {bill.currency}", "a month, by right-sizing", good)
        )
    task = data.used.usage.get(None) if data.used is not None else None
    if task is not None:
        tiles.append(_tile(f"{task.cpu_ns / 1e9:.2f} s", "of CPU time"))
        tiles.append(_tile(_bytes(task.memory_peak_bytes), "of memory at most"))
        if task.periods:
            share = task.throttled_periods / task.periods
            held = "bad" if share > 0.01 else ""
            tiles.append(_tile(_percent(share), "of periods throttled", held))
    traffic = data.used.traffic.get(None) if data.used is not None else None
    if traffic is not None and (traffic.received_bytes or traffic.sent_bytes):
        shown = f"{_bytes(traffic.received_bytes)} / {_bytes(traffic.sent_bytes)}"
        tiles.append(_tile(shown, "received / sent"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _quality(data: ReportData) -> str:
    used = data.used
    if used is None or None not in used.usage:
        return "No ledger."
    task = used.usage[None]
    parts = [f"{task.samples} samples", f"{task.gaps} unreadable values"]
    parts.append(f"{used.missed_s} missed seconds")
    parts.append(f"{task.estimated_ns / 1e9:.1f} s of memory estimated")
    if used.clock_steps:
        parts.append(f"the clock was set {len(used.clock_steps)} times")
    if used.suspended_ns:
        parts.append(f"the host slept {used.suspended_ns / 1e9:.0f} s")
    if used.damaged:
        parts.append(f"{used.damaged} damaged places left out")
    return "Ledger: " + ", ".join(parts) + "."


def make_page(data: ReportData, made_at_ns: int) -> str:
    """The whole page."""
    begin = datetime.fromtimestamp(data.begin_at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    made = datetime.fromtimestamp(made_at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    name = f"{data.family}:{data.revision}" if data.revision else data.family
    size = f"{data.cpu_units / 1024:g} vCPU, {data.memory_mib / 1024:g} GB"
    facts = [data.status, size, f"{begin}, {format_span(round(data.length_ns / 1e9, 1))}",
             f"{data.cluster}, {data.region}"]  # fmt: skip
    reason = f'<p class="sub">{escape(data.stop_reason)}</p>' if data.stop_reason else ""
    tags = ", ".join(f"{key}={value}" for key, value in data.tags.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(name)} {data.task_id[:12]}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(name)}</h1>"
        f'<p class="sub">{data.task_id}</p>'
        f'<p class="sub">{escape(" · ".join(facts))}</p>{reason}'
        + (f'<p class="sub">{escape(tags)}</p>' if tags else "")
        + _tiles(data)
        + _charts(data)
        + _section("What happened", _events(data.moments))
        + _section("Launch phases", draw_phases(data.phases))
        + _section("Bill", _bill(data.bill))
        + _section("Right-sizing", _sizing(data.bill.right_sizing, data.bill.currency))
        + f"<footer>{escape(_quality(data))} Made by fargatelite, {made}.</footer>"
        "</main></body></html>\n"
    )
