"""The comparison, for real and tiny: its table, its figures, and what it leaves behind, which is nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from graft.scripts import comparison
from graft.scripts.comparison import Cell, ComparisonError, Plan
from graft.scripts.old_program import comparison_ways
from tests.scripts.sandbox import Sandbox
from tests.stack import wait_until

TINY = ["--small", "3", "--medium", "101", "--large", "120", "--item-ms", "1"]
COMMAND = [sys.executable, "-m", "graft.scripts.comparison"]
WITHOUT_RAY = ["old", "celery", "hybrid"]


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("work", "repeat"), [("compute", 2), ("wait", 1)])
def test_every_cell_is_measured_and_stands_beside_its_claim(stack, sandbox: Sandbox, tmp_path, work, repeat):
    figures = tmp_path / "figures.json"
    options = ["--work", work, "--repeat", str(repeat), "--json", str(figures)]
    done = run(sandbox.env | stack.variables, *TINY, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["sizes"] == {"small": 3, "medium": 101, "large": 120}
    for label, ways in comparison.CLAIMED.items():
        cells = found["table"][label]
        assert [way for way in cells if way != "ray"] == WITHOUT_RAY
        for way, cell in cells.items():
            assert cell["claimed"] == ways[way]
            assert len(cell["measured"]) == repeat
            assert min(cell["measured"]) > 0
    assert {found["table"][label]["celery"]["method"] for label in found["sizes"]} == {"celery"}
    assert found["table"]["small"]["old"]["method"] == "old"
    assert found["table"]["memory"]["celery"]["median"] > found["table"]["memory"]["old"]["median"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert [line.split()[1].strip(",") for line in lines] == ["small", "medium", "large", "memory"]
    assert "(2.5) s" in lines[0]
    assert "(500) MB" in lines[3]
    sandbox.check_clean()


def test_ctrl_c_ends_it_with_the_stack_it_started(stack, sandbox: Sandbox, tmp_path):
    said = tmp_path / "said"
    with said.open("w") as file:
        started = subprocess.Popen(
            [*COMMAND, *TINY, "--large", "100000"], env=sandbox.env, stdout=file, stderr=file, process_group=0
        )
    wait_until(lambda: sandbox.find("graft.scripts.old_program.comparison_ways"), 60, "a way is measured")
    assert sandbox.find("worker") is not None
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(30) == 130
    assert "Traceback" not in said.read_text()
    sandbox.check_clean()


def test_a_broker_that_is_down_is_named(sandbox: Sandbox):
    done = run(sandbox.env | {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}, *TINY)
    assert done.returncode == 1
    assert "redis://127.0.0.1:1/0 does not answer" in done.stderr
    sandbox.check_clean()


@pytest.mark.parametrize("wrong", [["--small", "0"], ["--repeat", "x"], ["--work", "nap"], ["--item-ms", "-1"]])
def test_wrong_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as refused:
        comparison.main(wrong)
    assert refused.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_help_says_what_is_measured(capsys):
    with pytest.raises(SystemExit):
        comparison.main(["--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--small", "--large", "--repeat", "--json", "--work"))


def test_a_wrong_result_is_found_and_refused():
    found = comparison_ways.measure("old", lambda item: item[0], [2], 5, 0.0, use_ray=False)
    assert [row["is_right"] for row in found["sizes"]] == [False]
    with pytest.raises(ComparisonError, match="old gave wrong results for 2 items"):
        comparison.checked("old", found)


@pytest.mark.parametrize("work", ["compute", "wait"])
def test_right_results_are_told_by_their_formula(work):
    found = comparison_ways.measure("old", comparison_ways.WORK[work], [0, 1, 23], 7, 0.0, use_ray=False)
    assert [row["is_right"] for row in found["sizes"]] == [True] * 3
    assert comparison_ways.answer((5, 4, 0.0)) == 5 + 0 + 1 + 2 + 3


def test_the_old_way_bounds_its_batches_and_keeps_the_order():
    running, most = 0, 0

    async def work(item):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (item[0] % 3))
        running -= 1
        return item[0]

    items = [(number, 0, 0.0) for number in range(100)]
    assert asyncio.run(comparison_ways.old_optimizer(items, work)) == list(range(100))
    assert 10 < most <= 50


def test_a_figure_is_the_median_and_what_was_not_measured_shows_its_claim_alone():
    plan = Plan("compute", {"small": 3}, 0.001, 10, 3, ("old",))
    runs = [{"sizes": [{"items": 3, "seconds": s, "method": "old"}], "memory": 2_000_000} for s in (9.0, 1.0, 2.0)]
    found = comparison.rows(plan, {"old": runs})
    assert found["small"]["old"] == Cell((9.0, 1.0, 2.0), 2.5, "old")
    assert found["small"]["old"].median == 2.0
    assert found["memory"]["old"].median == 2.0
    assert set(found["small"]) == {"old"}
    columns = [list(column.cells) for column in comparison.as_table(plan, found).columns]
    assert columns == [
        ["small, 3 items", "memory"],
        ["2.00 (2.5) s", "2 (500) MB"],
        ["- (2 s)", "- (300 MB)"],
        ["- (3 s)", "- (800 MB)"],
        ["- (2 s)", "- (400 MB)"],
    ]
