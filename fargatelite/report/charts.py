"""Charts as inline SVG. Colours are CSS variables, so that one picture serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from fargatelite.report.data import Moment, PhaseBar

__all__ = ["Series", "draw_curves", "draw_phases", "format_span"]

Series = tuple[str, str, Sequence[tuple[int, float | None]]]
"""Name, CSS class, points."""

WIDTH, HEIGHT = 960, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 14, 26
_TICKS = 6
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
_DAY_S = 86400
_PHASE_PX = 20


def format_span(seconds: float) -> str:
    """`4 s`, `1:30`, `2:05:00`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:g} s" if seconds != whole else f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _step_for(length_s: float) -> float:
    wanted = length_s / _TICKS
    for step in _STEPS_S:
        if step >= wanted:
            return step
    return -(-wanted // _DAY_S) * _DAY_S


def _values(top: float, *, is_binary: bool) -> list[float]:
    """Three to six round values from 0 to `top`; powers of two for bytes."""
    if is_binary:
        step = float(2 ** math.ceil(math.log2(top / 5)))
    else:
        scale = 10.0 ** math.floor(math.log10(top / 5))
        step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= top / 5)
    return [number * step for number in range(int(top / step) + 1)]


def _path(points: Sequence[tuple[int, float | None]], x: Callable[[float], float],
          y: Callable[[float], float]) -> str:  # fmt: skip
    parts: list[str] = []
    is_new = True
    for at_ns, value in points:
        if value is None:
            is_new = True
            continue
        parts.append(f"{'M' if is_new else 'L'}{x(at_ns):.1f} {y(value):.1f}")
        is_new = False
    return " ".join(parts)


def draw_curves(
    *,
    title: str,
    series: Sequence[Series],
    length_ns: int,
    limit: float | None,
    limit_text: str,
    format_value: Callable[[float], str],
    moments: Sequence[Moment],
    least_top: float = 0.0,
    is_binary: bool = False,
) -> str:
    """Curves over the task's life, its limit as a dashed line, what happened as thin ones."""
    highest = max(
        (value for _, _, points in series for _, value in points if value is not None), default=0.0
    )
    top = max(highest * 1.08, (limit or 0.0) * 1.08, least_top) or 1.0
    inner_width, inner_height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    span_ns = max(length_ns, 1)

    def x(at_ns: float) -> float:
        return _LEFT + inner_width * min(max(at_ns / span_ns, 0.0), 1.0)

    def y(value: float) -> float:
        return _TOP + inner_height * (1 - value / top)

    out = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">'
    ]
    for value in _values(top, is_binary=is_binary):
        out.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/><text class="tick" x="{_LEFT - 8}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{escape(format_value(value))}</text>'
        )
    length_s = span_ns / 1e9
    step_s = _step_for(length_s)
    tick = 0.0
    while tick <= length_s:
        is_last = tick > length_s * 0.96
        anchor = "start" if tick == 0 else "end" if is_last else "middle"
        out.append(
            f'<text class="tick" x="{x(tick * 1e9):.1f}" y="{HEIGHT - 8}" '
            f'text-anchor="{anchor}">{format_span(tick)}</text>'
        )
        tick += step_s
    for moment in moments:
        if moment.weight > 1:
            at = x(moment.at_ns)
            out.append(
                f'<line class="moment {moment.kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" '
                f'y2="{HEIGHT - _BOTTOM}"><title>{escape(moment.subject)}: '
                f"{escape(moment.text)}</title></line>"
            )
    for name, css_class, points in series:
        path = _path(points, x, y)
        if path:
            out.append(
                f'<path class="curve {css_class}" d="{path}"><title>{escape(name)}</title></path>'
            )
    if limit is not None:
        out.append(
            f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(limit):.1f}" '
            f'y2="{y(limit):.1f}"/><text class="limit-text" x="{WIDTH - _RIGHT - 4}" '
            f'y="{y(limit) - 4:.1f}" text-anchor="end">{escape(limit_text)}</text>'
        )
    out.append("</svg>")
    return "".join(out)


def draw_phases(phases: Sequence[PhaseBar]) -> str:
    """Bars in time, one below the other, as far as the launch went."""
    if not phases:
        return ""
    name_px, value_px = 240, 90
    end_us = max(phase.started_us + phase.duration_us for phase in phases) or 1
    inner = WIDTH - name_px - value_px
    height = len(phases) * _PHASE_PX + 6
    out = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Launch">']
    for number, phase in enumerate(phases):
        top = number * _PHASE_PX + 3
        begin = name_px + inner * phase.started_us / end_us
        width = max(1.5, inner * phase.duration_us / end_us)
        name = phase.name if len(phase.name) <= 38 else phase.name[:36] + "…"
        out.append(
            f'<text class="tick name" x="{name_px - 10}" y="{top + 14}" text-anchor="end">'
            f"{escape(name)}</text>"
            f'<rect class="phase" x="{begin:.1f}" y="{top + 3}" width="{width:.1f}" '
            f'height="{_PHASE_PX - 7}" rx="2"><title>{escape(phase.name)}</title></rect>'
            f'<text class="tick" x="{min(begin + width + 6, WIDTH - value_px + 4):.1f}" '
            f'y="{top + 14}">{phase.duration_us / 1000:.1f} ms</text>'
        )
    out.append("</svg>")
    return "".join(out)
