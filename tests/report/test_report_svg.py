from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from ranum.report import svg


@pytest.mark.parametrize(
    ("lower", "upper", "kind", "expected"),
    [
        (0.0, 10.0, "linear", [0, 2, 4, 6, 8, 10]),
        (-0.3, 0.3, "linear", [-0.2, 0.0, 0.2]),
        (1e-3, 1e3, "log", [1e-3, 1e-1, 1e1, 1e3]),
        (-1e6, 1e6, "symlog", [-1e6, -1e3, 0, 1e3, 1e6]),
        (0.0, 1e4, "symlog", [0, 1e1, 1e2, 1e3, 1e4]),
        (3.0, 3.0, "linear", [3.0]),
    ],
)
def test_ticks_are_round_and_inside(lower, upper, kind, expected):
    ticks = svg.Scale(lower, upper, 0, 100, kind).ticks(5)
    assert ticks == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["linear", "log", "symlog"])
def test_a_scale_keeps_order_and_puts_infinity_on_its_end(kind):
    scale = svg.Scale(1e-2, 1e4, 10, 110, kind)
    places = [scale(value) for value in (-math.inf, 1e-2, 1.0, 50.0, 1e4, 1e300, math.inf)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (10, 110)


def test_symlog_is_odd_and_finite_for_every_float():
    assert svg.symlog(0.0) == 0.0
    assert svg.symlog(-9.0) == -1.0
    assert math.isfinite(svg.symlog(1.7e308))
    assert math.isfinite(svg.symlog(math.inf))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.1, 0.2, math.nan], "linear"),
        ([1e-3, 1.0, 1e5], "log"),
        ([-5.0, 1e-3, 1e6], "symlog"),
        ([], "linear"),
        ([None, math.inf], "linear"),
        ([2.0, 2.0], "linear"),
    ],
)
def test_a_fitted_scale_chooses_its_kind_and_holds_the_finite_values(values, kind):
    scale = svg.fitted(values, 100, 0)
    assert scale.kind == kind
    for value in values:
        if value is not None and math.isfinite(value):
            assert scale.lower <= value <= scale.upper


def test_a_line_breaks_at_gaps_and_where_steps_go_back():
    x, y = svg.Scale(0, 10, 0, 10), svg.Scale(0, 10, 0, 10)
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 4.0), (4, 5.0), (2, 6.0), (3, 7.0)]
    assert svg.polyline(points, x, y) == "M0 1L1 2M3 4L4 5M2 6L3 7"


def test_a_lone_point_is_drawn():
    x, y = svg.Scale(0, 10, 0, 10), svg.Scale(0, 10, 0, 10)
    assert svg.polyline([(0, None), (1, 2.0), (2, math.inf)], x, y) == "M1 2h.1"


def test_thinning_keeps_spikes_and_gaps():
    points = [(step, 1.0) for step in range(9000)]
    points[4321] = (4321, 99.0)
    points[777] = (777, math.nan)
    kept = svg.thinned(points)
    assert len(kept) < 1000
    assert (4321, 99.0) in kept
    assert any(math.isnan(y) for _, y in kept)


def test_text_and_attributes_are_escaped():
    drawing = svg.figure(
        10,
        10,
        [svg.label(1, 2, "a<b>&"), svg.titled("rect", '"<x>"', class_='"><script>')],
        title="<t>",
        text="a & b",
        name="one",
    )
    root = ElementTree.fromstring(drawing)
    assert root.find("text").text == "a<b>&"
    assert root.find("rect").get("class") == '"><script>'


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1e-3, "0.001"), (1e5, "1e5"), (-2e38, "-2e38"), (1e-7, "1e-7")]
)
def test_tick_text(value, text):
    assert svg.tick_text(value) == text
