"""How long a reading serves: longer the more it costs, and never once somebody has acted or Redis was away."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from graft.scripts.flower_pages.reading import LONGEST, Told


@pytest.mark.parametrize(
    ("old", "cost", "serves"),
    [(0.5, 0.0, True), (1.5, 0.0, False), (4.0, 0.5, True), (6.0, 0.5, False), (LONGEST + 1, 100.0, False)],
)
def test_what_was_expensive_to_read_serves_for_longer(old, cost, serves):
    told = Told("a page", time.time() - old, cost=cost)
    assert told.serves(1.0, 10.0) == serves
    assert not replace(told, error="away").serves(1.0, 10.0)
    assert not replace(told, is_old=True).serves(1.0, 10.0)
    assert not replace(told, value=None).serves(1.0, 10.0)
