"""The report of a run says what was measured."""

from __future__ import annotations

import json
from io import StringIO

from rich.console import Console

from graft.scripts.bench.machine import Machine
from graft.scripts.bench.measuring import Answer, Repetition, Series
from graft.scripts.bench.report import as_json, as_markdown, show
from graft.scripts.bench.run import Outcome, Plan
from graft.scripts.bench.targets import examined
from graft.scripts.bench.workloads import catalogue

MACHINE = Machine.here("7.0", 0.0)


def full() -> Outcome:
    """A run in which two contenders took part in everything, and a third failed."""
    found = []
    for workload in catalogue(cores=2):
        for name, factor in (("graft", 1.0), ("celery", 10.0)):
            answer = Answer(workload.items.count, factor, (0.001 * factor, 0.002 * factor), {"work": 1.0})
            series = Series(workload, name, [Repetition(answer, 0.1, 0.2, 0.3)], memory={"after": 1e8})
            if workload.shape == "stream":
                series.history = [(0.0, 1e8, 2e8, 1e6), (1.0, 1.1e8, 2e8, 2e6)]
            found.append(series)
        found.append(Series(workload, "loop", failure="<broken> & gone"))
    return Outcome(Plan(catalogue(), ["graft", "celery", "loop"]), found)


def unpromised() -> Outcome:
    """A run of one workload of which nothing is promised."""
    found = full()
    found.series = [series for series in found.series if series.workload.name == "cpu-100us"]
    assert found.series
    return found


def test_tables_for_a_document_have_every_workload_and_promise() -> None:
    text = as_markdown(full(), MACHINE)
    assert all(f"**{workload.name}**: " in text for workload in catalogue(cores=2))
    assert "| no-op batch against a stock Celery group | at least 300 × | 10 × | missed by a factor of 30.00 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)


def test_the_terminal_shows_the_quickest_first_and_who_failed() -> None:
    console = Console(record=True, width=200, file=StringIO())
    show(full(), MACHINE, console)
    text = console.export_text()
    table = text.split("noop: 20,000 no-op items")[1]
    assert table.index("celery-graft") < table.index("stock Celery, prefork") < table.index("failed")
    assert "missed by a factor of 30.00" in text


def test_a_run_of_which_nothing_is_promised_has_no_table_of_promises() -> None:
    console = Console(record=True, width=200, file=StringIO())
    show(full(), MACHINE, console)
    assert "what is promised" in console.export_text()
    show(unpromised(), MACHINE, console)
    text = console.export_text()
    assert "cpu-100us: " in text
    assert "what is promised" not in text
    assert "\n\n\n" not in text  # Nor the room for it.
    promises = "| figure | promised | measured |"
    assert promises in as_markdown(full(), MACHINE)
    assert promises not in as_markdown(unpromised(), MACHINE)
    assert "**cpu-100us**: " in as_markdown(unpromised(), MACHINE)


def test_json_has_every_series_and_every_promise() -> None:
    run = json.loads(as_json(full(), MACHINE))
    assert len(run["results"]) == 3 * len(catalogue(cores=2))
    assert sum(bool(each["failure"]) for each in run["results"]) == len(catalogue(cores=2))
    assert {"reached", "not measured"} < {each["verdict"] for each in run["targets"]}
    assert run["machine"]["redis"] == "7.0"


def test_the_claims_of_the_old_pools_are_judged() -> None:
    chosen = {workload.name: workload for workload in catalogue(cores=2) if workload.group == "pool"}

    def series(name: str, contender: str, seconds: float, **memory: float) -> Series:
        workload = chosen[name]
        answer = Answer(workload.items.count, seconds, (), {"work": 10.0} if workload.is_work else {})
        return Series(workload, contender, [Repetition(answer, 0.1, 0.2, 0.3)], memory=memory)

    found = [
        series("pool", "graft-pool", 5.0),
        series("pool-10ms", "graft-pool", 5.0, before=1e8, after=1.3e8),
        series("pool-waits", "graft-pool", 2.0),
        series("pool-waits", "one-by-one", 10.0),
    ]
    outcome = Outcome(Plan(list(chosen.values()), ["graft-pool", "one-by-one"], cores=2), found)
    judged = {
        verdict.target.promise: (round(verdict.found or 0, 6), verdict.is_reached)
        for verdict in examined(outcome)
        if verdict.target.promise.startswith("old claim: ")
    }
    assert judged == {
        "old claim: requests through a pool": (4000, True),
        "old claim: 8 worker processes against one task after the other": (5, False),
        "old claim: 6 times the sequential on 8 cores, here in shares of the cores": (1, True),
        "old claim: memory of a pool's processes once they compute": (1.3, False),
    }
