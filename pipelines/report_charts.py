"""Charts of the report as inline SVG; colours are the page's CSS variables, so they follow its light or dark dress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = [
    "CalibrationPoint",
    "IntervalRow",
    "Rectangle",
    "calibration_chart",
    "interval_chart",
    "line_chart",
    "rectangle_chart",
    "ticks",
]


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """A named figure, with its interval where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class CalibrationPoint:
    """Rows of similar predicted probability: what was predicted, what happened."""

    predicted: float
    observed: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A part of a row."""

    left: float
    """In units of the whole row, as its width."""
    width: float
    label: str
    """Written inside where there is room."""
    said: str
    """Shown under the pointer."""
    faint: bool = False


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from about ``low`` to about ``high``, inside them.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def line_chart(
    points: Sequence[tuple[float, float]],
    *,
    title: str,
    x_label: str,
    best: str | None = None,
    beside: Sequence[tuple[float, float]] = (),
    width: int = 420,
) -> str:
    """One curve, or two on the same axes.

    Args:
        points: (x, y) in rising order of x.
        title: what y is, with its unit.
        x_label: what x is.
        best: ``min`` or ``max`` marks that point with its value.
        beside: the points of a second curve, drawn dashed.
        width: of the picture, in CSS pixels at full size.
    """
    height, left, right, top, bottom = 230, 52, 16, 24, 36
    x_low, x_high = _span([x for x, _ in (*points, *beside)], pad=0.0)
    y_low, y_high = _span([y for _, y in (*points, *beside)], pad=0.06)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / (x_high - x_low) * (width - left - right),
            height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom),
        )

    parts = []
    for y in ticks(y_low, y_high, 4):
        row = at(x_low, y)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{row:.1f}" y2="{row:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{row + 4:.1f}" text-anchor="end">{_short(y)}</text>')
    for x in ticks(x_low, x_high, 4):
        column = at(x, y_low)[0]
        parts.append(f'<text x="{column:.1f}" y="{height - bottom + 17}" text-anchor="middle">{_short(x)}</text>')
    parts.append(f'<text x="{width - right}" y="{height - 3}" text-anchor="end">{escape(x_label)}</text>')
    places = [at(x, y) for x, y in points]
    for curve, kind in ((beside, "other"), (points, "ours")):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve))
        if curve:
            parts.append(f'<polyline class="line{" other" if kind == "other" else ""}" points="{line}"/>')
        if len(curve) <= 30:
            parts += [_dot(*at(x, y), f"{_short(x)}: {y:.4g}", radius=2.5, kind=kind) for x, y in curve]
    if best is not None:
        chosen = (min if best == "min" else max)(range(len(points)), key=lambda place: points[place][1])
        column, row = places[chosen]
        parts.append(_dot(column, row, f"best, {points[chosen][1]:.4g} at {_short(points[chosen][0])}", radius=4.5))
        anchor, shift = ("end", 4) if column > width / 2 else ("start", -4)
        parts.append(
            f'<text class="value" x="{column + shift:.1f}" y="{row - 9:.1f}" text-anchor="{anchor}">'
            f"{points[chosen][1]:.4g}</text>"
        )
    return _figure(title, width, height, parts)


def interval_chart(rows: Sequence[IntervalRow], *, title: str, chance: float | None = None, width: int = 640) -> str:
    """Figures with their intervals, one line each, in the order given.

    Args:
        rows: what to show.
        title: of the figure.
        chance: where a dashed line says what guessing gets.
        width: of the picture.
    """
    if not rows:
        return ""
    left, right, top, step = 190, 64, 8, 26
    height = top + step * len(rows) + 26
    values = [edge for row in rows for edge in (row.value, row.low, row.high) if edge is not None]
    low, high = _span([*values, *([] if chance is None else [chance])], pad=0.04)
    if low < 0.35 * high and min(values) >= 0:
        low = 0.0  # little is gained by cutting so much off

    def column(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    bottom = top + step * len(rows)
    parts = []
    for value in ticks(low, high, 5):
        at = column(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{_short(value)}</text>')
    if chance is not None:
        at = column(chance)
        parts.append(f'<line class="guide" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
    for place, row in enumerate(rows):
        y = top + step * (place + 0.5)
        kind = "ours" if row.ours else "other"
        parts.append(
            f'<text class="name {kind}" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{_cut(row.name)}</text>'
        )
        said = f"{row.name}: {row.value:.4f}"
        if row.low is not None and row.high is not None:
            parts.append(
                f'<line class="whisker {kind}" x1="{column(row.low):.1f}" x2="{column(row.high):.1f}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            said += f" ({row.low:.4f} to {row.high:.4f})"
        parts.append(_dot(column(row.value), y, said, radius=4.5, kind=kind))
        parts.append(f'<text class="value {kind}" x="{width}" y="{y + 4:.1f}" text-anchor="end">{row.value:.4f}</text>')
    return _figure(title, width, height, parts)


def calibration_chart(points: Sequence[CalibrationPoint], *, title: str, width: int = 275) -> str:
    """Predicted against observed rates; a perfect model lies on the dashed line."""
    height, left, right, top, bottom = width, 46, 14, 12, 40
    high = max(1e-6, *(max(point.predicted, point.high) for point in points)) * 1.04

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / high * (width - left - right), height - bottom - y / high * (height - top - bottom)

    parts = []
    for value in ticks(0.0, high, 4):
        column, row = at(value, value)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{row:.1f}" y2="{row:.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{row + 4:.1f}" text-anchor="end">{_short(value)}</text>')
        parts.append(f'<text x="{column:.1f}" y="{height - bottom + 16}" text-anchor="middle">{_short(value)}</text>')
    (x1, y1), (x2, y2) = at(0, 0), at(high, high)
    parts.append(f'<line class="guide" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    parts.append(f'<text x="{width - right}" y="{height - 6}" text-anchor="end">predicted, observed upwards</text>')
    for point in points:
        column, row = at(point.predicted, point.observed)
        parts.append(
            f'<line class="whisker ours" x1="{column:.1f}" x2="{column:.1f}" y1="{at(0, point.low)[1]:.1f}" '
            f'y2="{at(0, point.high)[1]:.1f}"/>'
        )
        said = f"predicted {point.predicted:.3f}, observed {point.observed:.3f}, {point.count:,} rows"
        parts.append(_dot(column, row, said, radius=4))
    return _figure(title, width, height, parts)


def rectangle_chart(rows: Sequence[Sequence[Rectangle]], *, title: str, total: float, width: int) -> str:
    """Rows of rectangles, the first row at the top.

    Args:
        rows: of rectangles that do not overlap.
        title: of the figure.
        total: what a row as wide as the picture stands for.
        width: of the picture.
    """
    step = 54
    parts = []
    for depth, row in enumerate(rows):
        top = depth * step
        for one in row:
            left, wide = one.left / total * width, one.width / total * width
            kind = "rest" if one.faint else f"depth{depth % 2}"
            parts.append(
                f'<rect class="{kind}" x="{left:.2f}" y="{top}" width="{wide:.2f}" height="{step}">'
                f"<title>{escape(one.said)}</title></rect>"
            )
            if wide >= 12 + 7 * len(one.label):
                parts.append(
                    f'<text class="inside" x="{left + wide / 2:.1f}" y="{top + step / 2 + 4:.0f}" text-anchor="middle">'
                    f"{escape(one.label)}</text>"
                )
    return _figure(title, width, step * len(rows), parts)


def _figure(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _dot(x: float, y: float, said: str, *, radius: float, kind: str = "ours") -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(said)}</title></circle>'


def _span(values: Sequence[float], *, pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low - (high - low) * pad, high + (high - low) * pad


def _short(value: float) -> str:
    if value and abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k" if abs(value) < 10**6 else f"{value / 10**6:,.3g}M"
    return f"{value:.10g}"


def _cut(name: str) -> str:
    return escape(name if len(name) <= 26 else name[:25] + "…")
