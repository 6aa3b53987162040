"""Sparklines and plots: what they tell those who cannot see them, and that a label stays text."""

from __future__ import annotations

import re

from graft.scripts.flower_pages import drawing


def heights(html: str) -> list[float]:
    (path,) = re.findall(r'polyline points="([^"]*)"', html)
    return [float(point.partition(",")[2]) for point in path.split()]


def test_a_sparkline_rises_with_its_values_and_tells_them():
    drawn = drawing.spark([0, 5, 10], "depth <low>")
    assert 'aria-label="depth &lt;low&gt;: from 0 to 10, now 10"' in drawn
    assert heights(drawn) == sorted(heights(drawn), reverse=True)
    assert "not enough" in drawing.spark([1], "depth")


def test_a_limit_is_drawn_where_the_values_come_near_it():
    near, far = drawing.spark([6, 8], "age", 10), drawing.spark([0.1, 0.2], "age", 10)
    assert "limit 10" in near
    assert "graft-limit" in near
    assert min(heights(near)) > 3  # Room above for the limit.
    assert "limit" not in far
    assert min(heights(far)) == 3
    assert "limit" not in drawing.spark([5, 5], "items", None)


def test_a_plot_spans_from_its_lowest_to_its_highest_value_with_its_slope():
    points = [(1000.0 + 60 * minute, 100.0 + minute) for minute in range(10)]
    drawn = drawing.plot(points, "memory", 1 / 60)
    assert 'aria-label="memory: from 100 to 109, now 109"' in drawn
    assert heights(drawn)[0] == drawing.TALL - 3
    assert heights(drawn)[-1] == 3
    (y1, y2) = map(float, re.findall(r'y[12]="([^"]*)"', drawn))
    assert (y1, y2) == (drawing.TALL - 3, 3)  # The slope lies on the line.
    assert "graft-slope" not in drawing.plot(points, "memory")
    assert "Not enough" in drawing.plot(points[:1], "memory")
