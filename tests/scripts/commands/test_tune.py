"""Recommendations follow from measurements; the measurements are of real workers. No time is asserted anywhere."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from graft.scripts.commands.tune import command
from graft.scripts.commands.tune.advice import (
    MOST_PROCESSES,
    Cluster,
    Sample,
    break_even_items,
    break_even_seconds,
    concurrency,
    fitting_size,
    lane,
    recommend,
    verdict,
)
from graft.scripts.commands.tune.sampling import load_function, load_items, sample
from tests import samples
from tests.scripts.sandbox import Sandbox

COMPUTES = Sample(items=100, seconds=0.01, cpu=0.01, slowest=1.5, size=100.0, is_async=False)
WAITS = replace(COMPUTES, cpu=0.001)
AWAITS = replace(WAITS, is_async=True, at_once=0.0001)
TINY = replace(COMPUTES, seconds=1e-6, cpu=1e-6)
CLUSTER = Cluster(workers=2, trip=0.002, sizes={0: 0.0051, 1: 0.007, 10: 0.005})

durations = st.floats(1e-7, 10)


def test_a_function_that_computes_has_a_process_for_each_core() -> None:
    assert (lane(COMPUTES), concurrency(COMPUTES, 4)) == ("cpu", 4)


def test_a_plain_function_that_waits_has_more_processes_than_cores_within_reason() -> None:
    assert concurrency(WAITS, 2) == 20
    assert concurrency(replace(WAITS, cpu=1e-6), 2) == MOST_PROCESSES


def test_a_coroutine_function_goes_to_the_io_lane_with_as_many_at_once_as_fit_a_loop() -> None:
    assert (lane(AWAITS), concurrency(AWAITS, 2)) == ("io", 10)
    assert concurrency(replace(AWAITS, cpu=0.0001), 2) == 100


@given(durations, st.floats(0, 1), st.integers(1, 128), st.booleans())
def test_concurrency_is_always_possible(seconds: float, busy: float, cores: int, is_async: bool) -> None:
    found = concurrency(replace(COMPUTES, seconds=seconds, cpu=seconds * busy, is_async=is_async), cores)
    assert 1 <= found <= max(1_000, cores)


def test_an_envelope_holds_a_tenth_of_a_second_and_a_mebibyte_at_most() -> None:
    assert fitting_size(COMPUTES) == 10
    assert fitting_size(replace(TINY, size=2.0**18)) == 4
    assert fitting_size(replace(COMPUTES, seconds=5.0)) == 1


def test_a_batch_pays_for_its_trip_or_stays() -> None:
    # 10 ms here, 5.1 ms there, and 2 ms for the trip.
    assert break_even_items(COMPUTES, CLUSTER) == 1.0
    assert break_even_items(COMPUTES, replace(CLUSTER, trip=0.49)) == pytest.approx(100)
    assert verdict(COMPUTES, replace(CLUSTER, trip=0.49), 50) == "send-large"
    assert verdict(COMPUTES, replace(CLUSTER, trip=0.49), 5_000) == "send"


def test_items_that_take_less_than_the_road_stay_at_home() -> None:
    slow = Cluster(workers=2, trip=0.002, sizes={0: 1e-5})
    assert math.isinf(break_even_items(TINY, slow))
    assert verdict(TINY, slow, 10**9) == "stay"
    assert break_even_seconds(TINY, slow) == pytest.approx(1.9e-5)
    where = recommend(TINY, slow, 1_000, 2)[0]
    assert (where.setting, where.value) == ("where", "in the caller's process")
    assert "10 times as long" in where.reason
    assert "faster from about 19 µs per item" in where.reason


def test_one_worker_never_beats_the_caller_at_computing() -> None:
    assert math.isinf(break_even_seconds(COMPUTES, replace(CLUSTER, workers=1)))


def test_an_async_function_is_compared_with_itself_at_its_best() -> None:
    assert AWAITS.here == 0.0001
    assert verdict(AWAITS, Cluster(1, 0.002, {0: 0.0002}), 10**6) == "stay"


def test_the_learnt_size_is_preferred_unless_another_is_clearly_quicker() -> None:
    assert CLUSTER.best == 0
    assert replace(CLUSTER, sizes={0: 0.02, 10: 0.005}).best == 10
    assert recommend(COMPUTES, CLUSTER, 10, 2)[2].value == "leave it out"


@given(durations, durations, durations, st.integers(1, 64), st.integers(1, 10**7), st.booleans())
def test_there_is_always_an_answer(
    here: float, there: float, trip: float, workers: int, items: int, is_async: bool
) -> None:
    found = replace(COMPUTES, seconds=here, cpu=here / 2, is_async=is_async, at_once=here / 10 if is_async else None)
    said = recommend(found, Cluster(workers, trip, {0: there}), items, 2)
    assert [each.setting for each in said] == ["where", "lane", "batch_size", "concurrency", "prefetch"]
    assert all(each.value and each.reason for each in said)


# ---- what is given ---------------------------------------------------------------------------------------------------


def test_items_are_a_number_or_lines_of_json_or_one_list(tmp_path: Path) -> None:
    lines, one = tmp_path / "lines.jsonl", tmp_path / "one.json"
    lines.write_text('{"a": 1}\n\n[2, 3]\n"text"\n')
    one.write_text("[1, 2,\n 3]")
    assert load_items("3") == [0, 1, 2]
    assert load_items(str(lines)) == [{"a": 1}, [2, 3], "text"]
    assert load_items(str(one)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"), [("0", "holds no items"), ("no such file", "neither a number nor a file"), ("-5", "neither")]
)
def test_items_that_cannot_be_had_are_refused(text: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        load_items(text)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "items").write_text("1\nnope\n")
    with pytest.raises(click.BadParameter, match=r"line 2 of .* is not JSON"):
        load_items(str(tmp_path / "items"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json.dumps", "is not module:function"),
        ("json:nope", "cannot be imported"),
        ("nowhere_at_all:f", "cannot be imported"),
        ("json:__name__", "is str and cannot be called"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused(name: str, message: str) -> None:
    done = CliRunner().invoke(command, [name, "--items", "3"])
    assert done.exit_code == 2
    assert message in done.output
    with pytest.raises(click.BadParameter, match=message):
        load_function(name)


def test_a_sample_tells_waiting_from_computing() -> None:
    waits, computes = sample(samples.pause, [0.02] * 10, 5.0), sample(sum, [range(200_000)] * 30, 5.0)
    assert waits.busy < computes.busy
    assert (waits.items, computes.items) == (10, 30)
    assert not waits.is_async


def test_a_function_that_raises_cannot_be_measured(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["math:sqrt", "--items", str(_items(tmp_path, [-1.0]))])
    assert done.exit_code == 1
    assert "math:sqrt raised ValueError" in done.output


def _items(folder: Path, values: list[float]) -> Path:
    path = folder / "items.json"
    path.write_text(json.dumps(values))
    return path


def test_a_function_is_measured_here_and_on_workers_and_settings_are_recommended(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    report = tmp_path / "advice.json"
    (sandbox.work / "mine.py").write_text("def work(item):\n    return sum(range(item))\n")
    argv = ["-m", "celery", "-A", "graft", "tune", "mine:work", "--items", "200", "--seconds", "1"]
    done = subprocess.run(
        [sys.executable, *argv, "--json", str(report)],
        env=sandbox.env, cwd=sandbox.work, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sandbox.check_clean(0)
    advice = json.loads(report.read_text())
    assert {"1", "10", "100"} <= advice["cluster"]["sizes"].keys()
    assert all(cost > 0 for cost in advice["cluster"]["sizes"].values())
    assert advice["recommended"][0]["setting"] == "where"
    assert advice["verdict"] in ("stay", "send", "send-large")
    assert "recommended" in done.stdout
