"""Pictures for people as SVG text: grouped bars, and writes over time with their gaps. Pure: figures in, text out.

Plain SVG 1.1 on a light ground, without script, style sheet or font file: it shows alike in a browser, on a code
hosting site and in a converter.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

BLUE, LIGHT_BLUE, GREY, OCHRE, RED = "#1463a3", "#86b6dc", "#8d99a6", "#d9973a", "#c8372d"
INK, FAINT_INK, RULE, SHADE = "#1d2733", "#5c6875", "#e3e7ec", "#fbe3df"
FONT = "'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif"
WIDTH = 980
MARGIN = 28
HEAD = 74  # title and subtitle
LINE = 16  # of a footnote

Point = tuple[float, float]


class Canvas:
    """Collects elements; coordinates in pixels from the top left."""

    def __init__(self, height: float):
        self.height = height
        self._parts: list[str] = []
        self.box(0, 0, WIDTH, height, "#ffffff")

    def box(self, x: float, y: float, width: float, height: float, fill: str, hint: str = "") -> None:
        title = f"<title>{escape(hint)}</title>" if hint else ""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"'
        self._parts.append(f'<rect {place} fill="{fill}">{title}</rect>')

    def line(self, begin: Point, end: Point, colour: str = RULE, width: float = 1, dashes: str = "") -> None:
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        place = f'x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
        self._parts.append(f'<line {place} stroke="{colour}" stroke-width="{width:g}"{dashed}/>')

    def area(self, points: Sequence[Point], base: float, colour: str) -> None:
        """A curve, filled down to `base`."""
        curve = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        ends = f"{points[-1][0]:.1f},{base:.1f} {points[0][0]:.1f},{base:.1f}"
        self._parts.append(f'<polygon points="{curve} {ends}" fill="{colour}" fill-opacity="0.22"/>')
        line = f'<polyline points="{curve}" fill="none" stroke="{colour}" stroke-width="1.4" stroke-linejoin="round"/>'
        self._parts.append(line)

    def text(
        self, at: Point, text: str, size: float = 12, colour: str = INK, anchor: str = "start", bold: bool = False
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" font-size="{size:g}" text-anchor="{anchor}"{weight}'
        self._parts.append(f'<text {place} fill="{colour}">{escape(text)}</text>')

    def svg(self, name: str) -> str:
        size = f'width="{WIDTH}" height="{self.height:.0f}" viewBox="0 0 {WIDTH} {self.height:.0f}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={quoteattr(name)}'
        return "\n".join(
            [f'{head} font-family="{FONT}">', f"<title>{escape(name)}</title>", *self._parts, "</svg>", ""]
        )


@dataclass(frozen=True)
class Frame:
    """Where a chart's axes are."""

    left: float
    top: float
    width: float
    height: float

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def right(self) -> float:
        return self.left + self.width


def _heading(canvas: Canvas, title: str, subtitle: str) -> None:
    canvas.text((MARGIN, 34), title, 19, bold=True)
    canvas.text((MARGIN, 56), subtitle, 12, FAINT_INK)


def _notes(canvas: Canvas, notes: Sequence[str]) -> None:
    for number, note in enumerate(reversed(notes)):
        canvas.text((MARGIN, canvas.height - 16 - number * LINE), note, 11, FAINT_INK)


def _legend(canvas: Canvas, y: float, entries: Mapping[str, str]) -> None:
    x = float(MARGIN)
    for name, colour in entries.items():
        canvas.box(x, y - 10, 12, 12, colour)
        canvas.text((x + 18, y), name, 12)
        x += 18 + 7.4 * len(name) + 24


def short(value: float) -> str:
    """Three digits, and k for thousands."""
    if value >= 999.5:
        thousands = value / 1000
        return f"{thousands:,.0f}k" if thousands >= 99.95 else f"{thousands:.3g}k"
    return f"{value:.3g}"


# --- Grouped bars, on a scale of powers of ten ---


@dataclass(frozen=True)
class Bar:
    """A median; `least` and `most` are drawn as a whisker."""

    value: float
    least: float
    most: float


@dataclass(frozen=True)
class Group:
    """Bars side by side, by the names of their series; `notes` are lines below."""

    label: str
    bars: Mapping[str, Bar]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    title: str
    groups: Sequence[Group]


BARS_HEIGHT = 270
NOTES_MOST = 3  # of a group


def bars(
    title: str, subtitle: str, unit: str, series: Mapping[str, str], panels: Sequence[Panel], notes: Sequence[str] = ()
) -> str:
    """Panels side by side, on one scale. `series`: names and colours, in the order of the bars."""
    canvas = Canvas(HEAD + 24 + 34 + BARS_HEIGHT + 36 + NOTES_MOST * LINE + len(notes) * LINE + 16)
    _heading(canvas, title, subtitle)
    _legend(canvas, HEAD + 12, series)
    found = [bar for panel in panels for group in panel.groups for bar in group.bars.values()]
    low = math.floor(math.log10(min(bar.least for bar in found)) - 0.15)
    high = math.log10(max(bar.most for bar in found)) + 0.12
    gap = 58.0
    width = (WIDTH - 2 * MARGIN - gap * len(panels)) / len(panels)
    for number, panel in enumerate(panels):
        frame = Frame(MARGIN + gap + number * (width + gap), HEAD + 60, width, BARS_HEIGHT)
        _decades(canvas, frame, low, high)
        canvas.text((frame.left, frame.top - 14), panel.title, 13, bold=True)
        canvas.text((frame.left - 8, frame.top - 14), unit, 11, FAINT_INK, "end")
        _groups(canvas, frame, panel.groups, series, (low, high))
    _notes(canvas, notes)
    return canvas.svg(title)


def _decades(canvas: Canvas, frame: Frame, low: float, high: float) -> None:
    for power in range(math.floor(low), math.ceil(high)):
        for digit in (1, 2, 5):
            part = (power + math.log10(digit) - low) / (high - low)
            if 0 <= part <= 1:
                y = frame.bottom - part * frame.height
                canvas.line((frame.left, y), (frame.right, y), RULE)
                canvas.text((frame.left - 8, y + 4), short(digit * 10.0**power), 11, FAINT_INK, "end")


def _groups(
    canvas: Canvas, frame: Frame, groups: Sequence[Group], series: Mapping[str, str], scale: tuple[float, float]
) -> None:
    low, high = scale

    def height(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * frame.height

    room = frame.width / len(groups)
    bar_width = min(46.0, room * 0.86 / len(series))
    for number, group in enumerate(groups):
        middle = frame.left + (number + 0.5) * room
        x = middle - bar_width * len(series) / 2
        for name, colour in series.items():
            if bar := group.bars.get(name):
                top = frame.bottom - height(bar.value)
                hint = f"{name}, {group.label}: {bar.value:,.0f} ({bar.least:,.0f} to {bar.most:,.0f})"
                canvas.box(x + 1.5, top, bar_width - 3, frame.bottom - top, colour, hint)
                center, ends = x + bar_width / 2, (frame.bottom - height(bar.least), frame.bottom - height(bar.most))
                canvas.line((center, ends[0]), (center, ends[1]), INK, 1)
                canvas.text((center, min(top, ends[1]) - 5), short(bar.value), 10.5, INK, "middle")
            x += bar_width
        canvas.text((middle, frame.bottom + 19), group.label, 12, INK, "middle", bold=True)
        for line, note in enumerate(group.notes[:NOTES_MOST]):
            canvas.text((middle, frame.bottom + 37 + line * LINE), note, 11, FAINT_INK, "middle")
    canvas.line((frame.left, frame.bottom), (frame.right, frame.bottom), FAINT_INK)


# --- Writes over time ---


@dataclass(frozen=True)
class Mark:
    """Something that happened `at`; `gap` is from when to when nothing was acknowledged. Seconds, as the writes'."""

    name: str
    at: float
    gap: tuple[float, float]
    note: str = ""


@dataclass
class Curve:
    """Writes a second in steps of `step` seconds."""

    begin: float
    step: float
    rates: list[float] = field(default_factory=list)


OVERVIEW_HEIGHT, CLOSE_HEIGHT = 130, 130
OVERVIEW_STEPS, CLOSE_STEP_S = 300, 0.1
COLUMNS = 3
BEFORE_S, AFTER_LEAST_S, AFTER_GAPS = 1.0, 3.0, 1.5


def curve(times: Sequence[float], begin: float, end: float, step: float) -> Curve:
    """`times` are sorted."""
    count = max(1, math.ceil((end - begin) / step - 1e-9))
    edges = [bisect_left(times, begin + number * step) for number in range(count + 1)]
    return Curve(begin, step, [(after - before) / step for before, after in itertools.pairwise(edges)])


def timeline(
    title: str, subtitle: str, times: Sequence[float], marks: Sequence[Mark], notes: Sequence[str] = ()
) -> str:
    """`times` of acknowledged writes: the whole run, and a close view of each mark."""
    times = sorted(times)
    rows = math.ceil(len(marks) / COLUMNS)
    canvas = Canvas(HEAD + 40 + OVERVIEW_HEIGHT + 62 + rows * (CLOSE_HEIGHT + 78) - 24 + len(notes) * LINE + 12)
    _heading(canvas, title, subtitle)
    left = MARGIN + 46
    frame = Frame(left, HEAD + 34, WIDTH - left - MARGIN, OVERVIEW_HEIGHT)
    _overview(canvas, frame, times, marks)
    room = (WIDTH - MARGIN - left + 46) / COLUMNS
    for number, mark in enumerate(marks):
        row, column = divmod(number, COLUMNS)
        top = frame.bottom + 84 + row * (CLOSE_HEIGHT + 78)
        _close(canvas, Frame(left + column * room, top, room - 46, CLOSE_HEIGHT), times, mark)
    _notes(canvas, notes)
    return canvas.svg(title)


STRIP_S, STRIP_STEP_S, STRIP_HEIGHT, STRIP_ROOM = 120.0, 0.5, 60, 104


def strips(title: str, subtitle: str, times: Sequence[float], marks: Sequence[Mark], notes: Sequence[str] = ()) -> str:
    """`times` of acknowledged writes of a long run, a strip for each two minutes; the marks are named above."""
    times = sorted(times)
    begin = times[0]
    count = math.ceil((times[-1] - begin) / STRIP_S)
    canvas = Canvas(HEAD + 24 + count * STRIP_ROOM + len(notes) * LINE + 12)
    _heading(canvas, title, subtitle)
    left = MARGIN + 46
    most = max(curve(times, begin, times[-1], STRIP_STEP_S).rates)
    for number in range(count):
        frame = Frame(left, HEAD + 34 + number * STRIP_ROOM, WIDTH - left - MARGIN, STRIP_HEIGHT)
        _strip(canvas, frame, times, marks, begin, number, most)
    _notes(canvas, notes)
    return canvas.svg(title)


def _strip(
    canvas: Canvas,
    frame: Frame,
    times: Sequence[float],
    marks: Sequence[Mark],
    begin: float,
    number: int,
    most: float,
) -> None:
    since = begin + number * STRIP_S
    until = min(since + STRIP_S, times[-1])

    def x_of(time: float) -> float:
        return frame.left + (min(max(time, since), since + STRIP_S) - since) / STRIP_S * frame.width

    for mark in marks:
        if mark.gap[1] > since and mark.gap[0] < until:
            hint = f"{mark.note}: {(mark.gap[1] - mark.gap[0]) * 1000:.0f} ms"
            canvas.box(x_of(mark.gap[0]), frame.top, x_of(mark.gap[1]) - x_of(mark.gap[0]), frame.height, SHADE, hint)
    found = curve(times, since, until, STRIP_STEP_S)
    width = frame.width * (until - since) / STRIP_S
    _draw(canvas, Frame(frame.left, frame.top, width, frame.height), found, until, most)
    for order, mark in enumerate(marks):
        if since <= mark.at < since + STRIP_S:
            x, y = x_of(mark.at), frame.top - 4 - 9 * (order % 2)
            canvas.line((x, y), (x, frame.bottom), RED, 0.8, "3 3")
            canvas.text((x + 1, y), mark.name, 8, RED)
    canvas.line((frame.left, frame.bottom), (frame.right, frame.bottom), FAINT_INK)
    canvas.text((frame.left - 6, frame.bottom + 4), f"{number * STRIP_S / 60:g} min", 10.5, FAINT_INK, "end")


def _overview(canvas: Canvas, frame: Frame, times: Sequence[float], marks: Sequence[Mark]) -> None:
    begin, end = times[0], times[-1]
    found = curve(times, begin, end, (end - begin) / OVERVIEW_STEPS)

    def x_of(time: float) -> float:
        return frame.left + (time - begin) / (end - begin) * frame.width

    _rates(canvas, frame, max(found.rates))
    for mark in marks:
        canvas.box(x_of(mark.gap[0]), frame.top, x_of(mark.gap[1]) - x_of(mark.gap[0]), frame.height, SHADE)
    _draw(canvas, frame, found, end, max(found.rates))
    for mark in marks:
        x = x_of(mark.at)
        canvas.line((x, frame.top - 6), (x, frame.bottom), RED, 1, "4 3")
        canvas.text((x, frame.top - 11), mark.name, 11.5, RED, "middle", bold=True)
    _seconds(canvas, frame, 0.0, end - begin)


def _close(canvas: Canvas, frame: Frame, times: Sequence[float], mark: Mark) -> None:
    """Around one mark; its seconds count from there."""
    gap = mark.gap[1] - mark.gap[0]
    begin = mark.at - BEFORE_S
    end = mark.at + max(AFTER_LEAST_S, (mark.gap[1] - mark.at) * AFTER_GAPS)
    found = curve(times, begin, end, CLOSE_STEP_S)
    scale = frame.width / (end - begin)
    most = max(found.rates)
    _rates(canvas, frame, most)
    left, right = (frame.left + (min(max(time, begin), end) - begin) * scale for time in mark.gap)
    canvas.box(left, frame.top, right - left, frame.height, SHADE, f"{mark.name}: {gap * 1000:.0f} ms")
    _draw(canvas, frame, found, end, most)
    x = frame.left + BEFORE_S * scale
    canvas.line((x, frame.top), (x, frame.bottom), RED, 1, "4 3")
    canvas.text((frame.left, frame.top - 24), mark.name, 13, INK, bold=True)
    canvas.text((frame.right, frame.top - 24), f"{gap * 1000:,.0f} ms", 13, RED, "end", bold=True)
    canvas.text((frame.left, frame.top - 9), mark.note, 10.5, FAINT_INK)
    _seconds(canvas, frame, -BEFORE_S, end - mark.at)


def _draw(canvas: Canvas, frame: Frame, found: Curve, end: float, most: float) -> None:
    scale = frame.width / (end - found.begin)
    points = []
    for number, rate in enumerate(found.rates):
        y = frame.bottom - rate / (most * 1.08) * frame.height
        points += [(frame.left + min((number + edge) * found.step, end - found.begin) * scale, y) for edge in (0, 1)]
    canvas.area(points, frame.bottom, BLUE)


def _rates(canvas: Canvas, frame: Frame, most: float) -> None:
    """The scale of writes a second, from nothing to a little above `most`."""
    step = tick(most, 3)
    for number in range(int(most * 1.08 / step) + 1):
        y = frame.bottom - number * step / (most * 1.08) * frame.height
        canvas.line((frame.left, y), (frame.right, y))
        canvas.text((frame.left - 6, y + 4), short(number * step), 10.5, FAINT_INK, "end")
    if frame.width > WIDTH / 2:
        canvas.text((frame.left - 6, frame.top - 11), "writes/s", 10.5, FAINT_INK, "end")


def _seconds(canvas: Canvas, frame: Frame, first: float, last: float) -> None:
    step = tick(last - first, 10 if frame.width > WIDTH / 2 else 5)
    for number in range(math.ceil(first / step), math.floor(last / step) + 1):
        x = frame.left + (number * step - first) / (last - first) * frame.width
        canvas.line((x, frame.bottom), (x, frame.bottom + 4), FAINT_INK)
        canvas.text((x, frame.bottom + 17), f"{number * step:g} s".replace("-", "−"), 10.5, FAINT_INK, "middle")
    canvas.line((frame.left, frame.bottom), (frame.right, frame.bottom), FAINT_INK)


def tick(span: float, most: int) -> float:
    """1, 2 or 5 times a power of ten, so that no more than `most` steps lie in `span`."""
    step: float = 10.0 ** math.floor(math.log10(span / most))
    return next(step * digit for digit in (1, 2, 5, 10) if step * digit * most >= span * 0.9999)
