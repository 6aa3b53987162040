"""Charts: round ticks, a peak is never lost, and whatever a name is, the page stays well-formed."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.scripts.commands.html_report import charts

FINITE = st.floats(0, 1e12)


@given(FINITE, FINITE)
def test_ticks_span_the_values_in_few_equal_steps(one, other):
    low, high = sorted((one, other))
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 12
    assert found[0] <= low * (1 + 1e-6)  # But for what rounding costs.
    assert found[-1] >= high * (1 - 1e-6)


def test_a_peak_survives_thinning():
    points = [(float(at), 1.0) for at in range(5000)]
    points[3210] = (3210.0, 99.0)
    thinned = charts.thin(points)
    assert len(thinned) <= charts.POINTS
    assert max(value for _, value in thinned) == 99.0


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (0.25, "0.25"), (1500, "1.5k"), (12_000_000, "12M")])
def test_numbers_are_short(value, shown):
    assert charts.number(value) == shown


@given(st.dictionaries(st.text(max_size=60), FINITE, min_size=1, max_size=20))
def test_names_are_escaped_and_bars_are_well_formed(values):
    svg = charts.bars("a < b & c", "units", values)
    assert "<script" not in svg
    assert svg.count("<g>") == min(len(values), 12)


def test_hostile_names_do_not_reach_the_page_as_markup():
    for text in (
        charts.bars("t", "u", {"<script>alert(1)</script>": 1}),
        charts.lines("t", "<b>", {"<i x>": [(0, 1), (9, 2)]}),
    ):
        assert "<script" not in text
        assert "<b>u" not in text
        assert "&lt;" in text


def test_a_line_without_two_points_says_so():
    assert "Not enough" in charts.lines("t", "u", {"a": [(1.0, 2.0)]})


def test_the_svg_of_lines_is_xml_once_attributes_are_quoted():
    text = charts.lines("t", "u", {"a": [(0.0, 1.0), (5.0, 3.0)]})
    polyline = text[text.index("<polyline") : text.index("/>", text.index("<polyline")) + 2].replace("class=line", "")
    points = ElementTree.fromstring(polyline).attrib["points"].split()
    assert len(points) == 2
