"""The pictures: well-formed SVG, that says what it should, with lengths that are the figures."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from testbed import plot
from testbed.plot import Bar, Group, Mark, Panel

SVG = "{http://www.w3.org/2000/svg}"


def texts(tree: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in tree.iter(f"{SVG}text")]


def boxes(tree: ElementTree.Element, colour: str) -> list[tuple[float, float]]:
    """Width and height of the boxes of a colour, those of the legend left out."""
    found = [element for element in tree.iter(f"{SVG}rect") if element.get("fill") == colour]
    sizes = [(float(element.get("width", "")), float(element.get("height", ""))) for element in found]
    return [size for size in sizes if size != (12.0, 12.0)]


def one(value: float) -> Bar:
    return Bar(value, value, value)


def test_bars_have_the_lengths_of_logarithms() -> None:
    groups = [Group(f"{n} clients", {"us": one(10.0 * n), "them": one(100.0 * n)}, ["<0.10 & so>"]) for n in (1, 10)]
    text = plot.bars("A & B", "when", "per second", {"us": plot.BLUE, "them": plot.GREY}, [Panel("Writes", groups)])
    tree = ElementTree.fromstring(text)
    ours, theirs = ([height for _, height in boxes(tree, colour)] for colour in (plot.BLUE, plot.GREY))
    decade = ours[1] - ours[0]
    assert decade > 20
    assert theirs[1] - theirs[0] == pytest.approx(decade, abs=0.2)
    assert theirs[0] - ours[0] == pytest.approx(decade, abs=0.2)
    assert {"A & B", "when", "per second", "Writes", "10 clients", "<0.10 & so>", "us", "them"} <= set(texts(tree))
    assert {"10", "100", "1k"} <= set(texts(tree))


def test_whiskers_reach_from_least_to_most() -> None:
    group = Group("1 client", {"us": Bar(100, 10, 1000)})
    tree = ElementTree.fromstring(plot.bars("", "", "", {"us": plot.BLUE}, [Panel("", [group])]))
    (bar,) = [box for box in tree.iter(f"{SVG}rect") if box.get("fill") == plot.BLUE and box.get("width") != "12.0"]
    (whisker,) = [line for line in tree.iter(f"{SVG}line") if line.get("stroke") == plot.INK]
    top, low, high = (float(value or "") for value in (bar.get("y"), whisker.get("y1"), whisker.get("y2")))
    assert low - top == pytest.approx(top - high, abs=0.2)  # a decade each
    assert low - top > 20


def test_a_timeline_shades_and_names_each_gap() -> None:
    times = [number / 100 for number in range(30_000) if not 2000 < number < 2150]
    text = plot.timeline("T", "S", times, [Mark("kill", 20.0, (20.0, 21.5), "n1 → n2")], ["note"])
    tree = ElementTree.fromstring(text)
    assert {"T", "S", "kill", "1,500 ms", "n1 → n2", "note", "−1 s", "0 s"} <= set(texts(tree))
    overview, close = boxes(tree, plot.SHADE)
    whole, near = (plot.WIDTH - plot.MARGIN - (plot.MARGIN + 46)) / 300, close[0] / 1.5
    assert overview[0] == pytest.approx(1.5 * whole, abs=0.1)
    assert near > 10 * whole  # the close view shows what the overview cannot


def test_a_curve_counts_each_write_once() -> None:
    times = sorted([0.0, 0.05, 0.05, 0.1, 0.9999, 1.0])
    found = plot.curve(times, 0.0, 1.0, 0.1)
    assert len(found.rates) == 10
    assert found.rates[0] == pytest.approx(30)
    assert found.rates[1] == pytest.approx(10)
    assert sum(found.rates) * found.step == pytest.approx(5)  # the one at the end belongs to what follows


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7.25, "7.25"), (791, "791"), (999.7, "1k"), (7526, "7.53k"), (139_900, "140k"), (1_234_567, "1,235k")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert plot.short(value) == text


@pytest.mark.parametrize("span", [0.01, 0.9, 1.0, 3.7, 4.0, 10.0, 305.0, 88_000.0])
def test_ticks_are_round_and_few(span: float) -> None:
    step = plot.tick(span, 5)
    assert 1 <= span / step <= 5.001
    digit = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert round(digit, 6) in (1, 2, 5)
