"""The page holds everything that it shows, and every plot is drawn for light and for dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graft.scripts.bench.machine import Machine
from graft.scripts.bench.run import Outcome, Plan
from graft.scripts.bench.workloads import catalogue
from tests.scripts.bench.test_report import full, unpromised

pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'celery-graft[bench]'")

from graft.scripts.bench.page import page, write_plots
from graft.scripts.bench.plots import PLOTS, THEMES


def test_the_page_needs_nothing_else_and_shows_every_workload() -> None:
    text = page(full(), Machine.here("7.0", 0.0))
    assert not re.findall(r"(?:src|href|srcset)='(?!data:)", text)
    assert text.count("data:image/png;base64,") == len(PLOTS) * len(THEMES)
    assert all(f"<h3>{workload.name}: " in text for workload in catalogue(cores=2))
    assert "<td class=bad" in text
    assert "missed by a factor" in text


def test_a_run_of_which_nothing_is_promised_has_no_table_of_promises() -> None:
    assert "What is promised" in page(full(), Machine.here("7.0", 0.0))
    text = page(unpromised(), Machine.here("7.0", 0.0))
    assert "<h3>cpu-100us: " in text
    assert "What is promised" not in text
    assert "<th>promised" not in text


def test_every_plot_is_a_picture_for_each_theme(tmp_path: Path) -> None:
    written = write_plots(full(), tmp_path)
    assert {path.name for path in written} == {f"{name}-{theme}.png" for name in PLOTS for theme in THEMES}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_run_without_anything_to_draw_has_no_pictures() -> None:
    assert "<img" not in page(Outcome(Plan([], [])), Machine.here("7.0", 0.0))
