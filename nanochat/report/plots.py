"""Plots as inline SVG: curves, bars with standard errors, and a stacked bar of shares.

Owns: scales, ticks and marks. Does not own: runs, or colors, fonts and hover effects, which
report.css sets by class name so that one drawing serves light and dark.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 30
MAX_POINTS = 240  # points per curve after averaging; a plot has few more pixels than that
HOVER_POINTS = 36  # points per curve that show their value under the mouse
BAR_HEIGHT, BAR_GAP, GROUP_GAP = 9, 3, 12


@dataclass(frozen=True)
class Curve:
    """A series of points.

    kind: CSS classes: "main" or "faint", and a color. shape: "line", "dots" with their values as
    tooltips, or "area", filled inside the outline that the points form.
    """

    label: str
    points: Sequence[Point]
    kind: str = "main"
    shape: str = "line"


@dataclass(frozen=True)
class Bar:
    """One bar: a value, its standard error, the label at its end, and its tooltip."""

    value: float
    stderr: float | None
    text: str
    series: str
    tip: str


def line_chart(
    curves: Sequence[Curve],
    *,
    x_name: str,
    title: str,
    x_end: float | None = None,
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
) -> str:
    """Curves over a common x axis; points that are not finite are left out.

    x_end: the x axis extends from 0 at least to here. log_x, log_y: logarithmic axes, if all values
    are positive; a logarithmic x axis spans the points only. zero: the y axis starts at 0.
    """
    curves = [replace(c, points=_visible(c)) for c in curves]
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    if not xs:
        return ""
    # A gradient norm spans decades, where a linear axis shows only its spikes; a loss spans less
    # than one, and its axis is cut to the data because the differences that matter are small. Only
    # what is compared by its height (speeds, bars) has to start at 0.
    log_y = log_y and min(ys) > 0
    change = math.log10 if log_y else float
    low, high = _padded(min(map(change, ys)), max(map(change, ys)), zero=zero and not log_y)
    log_x = log_x and min(xs) > 0
    change_x = math.log10 if log_x else float
    x_low, x_high = min(0.0, *xs), max(x_end or 1.0, *xs)
    if log_x:
        x_low, x_high = _padded(math.log10(min(xs)), math.log10(max(xs)), zero=False)

    def place(point: Point) -> Point:
        x = LEFT + (change_x(point[0]) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        share = (change(point[1]) - low) / (high - low)
        return x, HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    y_ticks = _log_ticks(low, high) if log_y else ticks(low, high, 4)
    x_ticks = _log_ticks(x_low, x_high) if log_x else ticks(x_low, x_high, 4)
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [f'<svg class="curve" {box} role="img" aria-label="{escape(title)}">']
    parts += _y_axis(y_ticks, place, x_ticks[0])
    parts += _x_axis(x_ticks, place, x_name, y_ticks[0])
    parts += [_path(curve, place, x_name) for curve in curves]
    if all(curve.shape == "line" for curve in curves):  # dots have tooltips instead
        parts += _hover(curves, place, x_name)
    return "".join([*parts, "</svg>"])


def bar_chart(
    rows: Sequence[tuple[str, Sequence[Bar]]],
    *,
    title: str,
    low: float = 0.0,
    high: float = 1.0,
    tick: str = ".0%",
) -> str:
    """Rows of horizontal bars, one bar per series, with whiskers of one standard error.

    tick: format of the numbers on the axis.
    """
    label_width, text_width, width = 240, 110, 800
    span = width - label_width - text_width

    def x_of(value: float) -> float:
        return label_width + (min(max(value, low), high) - low) / (high - low) * span

    y, marks = 8.0, []
    for label, bars in rows:
        height = len(bars) * (BAR_HEIGHT + BAR_GAP) - BAR_GAP
        middle = y + height / 2 + 4
        marks.append(f'<text class="name" x="{label_width - 10}" y="{middle:.1f}">')
        marks.append(f"{escape(shortened(label, 38))}</text>")
        for bar in bars:
            marks.append(_bar(bar, x_of, y))
            y += BAR_HEIGHT + BAR_GAP
        y += GROUP_GAP - BAR_GAP
    axis = []
    for value in ticks(low, high, 5):
        x = x_of(value)
        axis.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{y:.1f}"/>')
        axis.append(f'<text class="tick a-mid" x="{x:.1f}" y="{y + 14:.1f}">{value:{tick}}</text>')
    box = f'viewBox="0 0 {width} {y + 20:.0f}"'
    open_tag = f'<svg class="bars" {box} role="img" aria-label="{escape(title)}">'
    return "".join([open_tag, *axis, *marks, "</svg>"])


def share_bar(parts: Sequence[tuple[str, float, str]], *, title: str) -> str:
    """One bar divided into shares: (tooltip, size, CSS class)."""
    total = sum(size for _, size, _ in parts) or 1.0
    width, x, marks = 1000.0, 0.0, []
    for tip, size, series in parts:
        share = size / total * width
        marks.append(
            f'<rect class="{series}" x="{x:.2f}" y="0" width="{max(share - 1.5, 0.5):.2f}" '
            f'height="22" rx="2"><title>{escape(tip)}</title></rect>'
        )
        x += share
    return (
        f'<svg class="shares" viewBox="0 0 {width:.0f} 22" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{"".join(marks)}</svg>'
    )


def averaged(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: neighbors are averaged, the first and last are kept."""
    if len(points) <= limit:
        return list(points)
    result = []
    for i in range(limit):
        part = points[i * len(points) // limit : (i + 1) * len(points) // limit]
        result.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return [points[0], *result[1:-1], points[-1]]


def smoothed(points: Sequence[Point], span: float = 0.03) -> list[Point]:
    """An exponential moving average over a share of the points, corrected for startup bias."""
    keep = 1 - 1 / max(1.0, span * len(points))
    # Dividing by the sum of the weights so far corrects the bias: an average that starts at 0
    # would rise from there, one that starts at the first value would carry its noise for long.
    result, total, weight = [], 0.0, 0.0
    for x, y in points:
        if math.isfinite(y):
            total, weight = keep * total + y, keep * weight + 1
        if weight:
            result.append((x, total / weight))
    return result


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high.

    >>> ticks(0, 1, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    # Steps of 1, 2, 2.5 or 5 times a power of ten are the ones people read without calculating.
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)] or [low]


def short_number(value: float) -> str:
    """A number short enough for an axis.

    >>> short_number(1_250_000), short_number(0.00031), short_number(12.5), short_number(40_000)
    ('1.25M', '0.00031', '12.5', '40k')
    """
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.4g}"


def shortened(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _visible(curve: Curve) -> list[Point]:
    """The finite points, averaged down to what can be seen if they form a line."""
    points = [(x, y) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)]
    return averaged(points) if curve.shape == "line" else points


def _padded(low: float, high: float, *, zero: bool) -> tuple[float, float]:
    if zero:
        low = min(low, 0.0)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if zero and low == 0 else low - margin), high + margin


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    found = [m * 10.0**p for p in powers for m in steps if low <= math.log10(m * 10.0**p) <= high]
    return found if len(found) > 1 else ticks(10**low, 10**high, 4)


def _y_axis(values: Sequence[float], place: Callable[[Point], Point], x_low: float) -> list[str]:
    parts = []
    for value in values:
        _, y = place((x_low, value))
        text = short_number(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick a-end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{text}</text>'
        )
    return parts


def _x_axis(
    values: Sequence[float], place: Callable[[Point], Point], name: str, any_y: float
) -> list[str]:
    parts = []
    for value in values:
        x, _ = place((value, any_y))
        text = short_number(value)
        parts.append(
            f'<text class="tick a-mid" x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}">{text}</text>'
        )
    x = WIDTH - RIGHT
    return [*parts, f'<text class="axis a-end" x="{x}" y="{HEIGHT - 3}">{escape(name)}</text>']


def _path(curve: Curve, place: Callable[[Point], Point], x_name: str) -> str:
    places = [place(point) for point in curve.points]
    if curve.shape == "dots" or len(places) == 1:
        return "".join(
            f'<circle class="dot {curve.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>'
            f"{escape(curve.label)}: {short_number(point[1])} at {short_number(point[0])} "
            f"{escape(x_name)}</title></circle>"
            for point, (x, y) in zip(curve.points, places, strict=True)
        )
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    shape, end = ("area", "Z") if curve.shape == "area" else ("line", "")
    return f'<path class="{shape} {curve.kind}" d="M{line}{end}"/>' if places else ""


def _hover(curves: Sequence[Curve], place: Callable[[Point], Point], x_name: str) -> list[str]:
    """Vertical bands that show the curve's value under the mouse, by CSS alone."""
    curve = next((c for c in curves if c.kind == "main"), curves[0])
    points = averaged(curve.points, HOVER_POINTS)
    band = (WIDTH - LEFT - RIGHT) / max(1, len(points))
    parts = []
    for point in points:
        x, y = place(point)
        end = "a-end" if x > WIDTH / 2 else "a-start"
        text = f"{short_number(point[1])} at {short_number(point[0])} {x_name}"
        parts.append(
            f'<g class="hover"><rect x="{x - band / 2:.1f}" y="{TOP}" width="{band:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
            f'<text class="{end}" x="{x:.1f}" y="{TOP - 2}">{escape(text)}</text></g>'
        )
    return parts


def _bar(bar: Bar, x_of: Callable[[float], float], y: float) -> str:
    start, end = sorted((x_of(0.0), x_of(bar.value)))
    middle = y + BAR_HEIGHT / 2
    parts = [
        f'<g class="{bar.series}"><title>{escape(bar.tip)}</title>',
        f'<rect x="{start:.1f}" y="{y:.1f}" width="{max(end - start, 1):.1f}" '
        f'height="{BAR_HEIGHT}" rx="1.5"/>',
    ]
    after = end
    if bar.stderr:
        left, right = x_of(bar.value - bar.stderr), x_of(bar.value + bar.stderr)
        after = max(after, right)
        parts.append(
            f'<line class="whisker" x1="{left:.1f}" x2="{right:.1f}" y1="{middle:.1f}" '
            f'y2="{middle:.1f}"/>'
        )
    parts.append(f'<text class="value" x="{after + 6:.1f}" y="{middle + 3.5:.1f}">')
    return "".join([*parts, f"{escape(bar.text)}</text></g>"])
