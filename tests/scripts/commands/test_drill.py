"""The drill counts honestly: it passes ours, fails what it should, and a fault that did not happen passes nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from graft.scripts.commands.drill import chosen, command, lines_of, markdown_of
from graft.scripts.drill import stage
from graft.scripts.drill.catalogue import FAULTS
from graft.scripts.drill.faults.batches import CallerKill, FeederKill
from graft.scripts.drill.faults.clocks import ClockDrift, ClockJump
from graft.scripts.drill.faults.fleet import Fleet
from graft.scripts.drill.faults.hosts import Partition
from graft.scripts.drill.faults.limits import SharedLimits
from graft.scripts.drill.faults.messages import BadMessages
from graft.scripts.drill.faults.power import PowerLoss
from graft.scripts.drill.faults.processes import ChildKill, Rolling, WorkerKill
from graft.scripts.drill.faults.residue import Residue
from graft.scripts.drill.faults.resources import OutOfMemory
from graft.scripts.drill.faults.versions import VersionMix
from graft.scripts.drill.ledger import Count, read
from graft.scripts.drill.soak import Soak, grows

labels = st.sampled_from([f"t{number}" for number in range(6)])
events = st.lists(st.tuples(st.sampled_from(["sent", "start", "end", "unsure"]), labels), max_size=40)


@given(events=events)
def test_the_ledger_adds_up(tmp_path_factory, events):
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    path.write_text("".join(f"{kind} {label} 1 {at}.0\n" for at, (kind, label) in enumerate(events)) + "start half")
    count = read(path)
    kinds = Counter(events)
    sent = {label for kind, label in kinds if kind == "sent"}
    ended = {label for kind, label in kinds if kind == "end"}
    assert count.lost == len(sent - ended)
    assert count.doubled == sum(n - 1 for (kind, _), n in kinds.items() if kind == "start")


def test_the_time_to_the_first_run_counts_from_the_end_of_the_fault():
    assert Count(started_at=(1.0, 5.0, 9.0)).next_start(4.0) == 1.0
    assert Count(started_at=(1.0,)).next_start(4.0) is None


def test_every_fault_of_the_promises_is_there_and_says_what_is_promised():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 17
    assert all(fault.limit and fault.__doc__ for fault in FAULTS)
    assert chosen(["worker-kill"]) == [WorkerKill]
    assert chosen([]) == [fault for fault in FAULTS if fault not in (Soak, Fleet, Residue)]
    assert chosen(["soak"], "io") == [Soak]
    assert ChildKill not in chosen([], "io")
    assert {WorkerKill, BadMessages, Rolling} <= set(chosen([], "io"))
    with pytest.raises(click.UsageError, match="child-kill does not exist on the io lane"):
        chosen(["child-kill"], "io")


def test_growth_is_told_from_noise():
    times = [float(second) for second in range(60)]
    assert grows(times, [100.0 + second for second in times])
    assert not grows(times, [100.0 + second % 7 for second in times])
    assert not grows(times, [1000.0 - second for second in times])
    assert not grows([1.0, 2.0], [1.0, 100.0])


@pytest.mark.parametrize("scale", [0.001, 0.02, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("fault", [ClockJump, ClockDrift])
def test_where_a_fault_is_judged_by_what_comes_late_its_load_leaves_workers_free(fault, scale):
    """Else due tasks and ticks wait behind long tasks, and the clocks are blamed."""
    made = fault(scale)
    work = made.work()
    assert made.busy / (work["count"] / work["rate"]) < 0.8  # Of all the time that its workers have.
    assert work["long_share"] * work["count"] >= 5  # Some outlast a lease.


@pytest.mark.parametrize("scale", [0.001, 0.05, 1.0])
def test_a_scale_leaves_every_fault_something_to_do(scale):
    for fault in FAULTS:
        made = fault(scale)
        assert made.tasks >= 60 or scale == 1.0
        assert 1 <= made.times() <= fault.full_strikes


@pytest.mark.redis
@pytest.mark.worker
@pytest.mark.parametrize(
    "fault",
    [WorkerKill, BadMessages, OutOfMemory, PowerLoss, VersionMix, SharedLimits, CallerKill, FeederKill, Residue],
    ids=lambda fault: fault.name,
)
def test_ours_passes(redis_stack, fault):
    if fault.unavailable():
        pytest.skip(fault.unavailable())
    result = fault(0.002).play("ours")
    assert result.passed, result
    assert result.strikes
    assert result.sent >= 60


@pytest.mark.redis
@pytest.mark.worker
@pytest.mark.parametrize("fault", [WorkerKill, BadMessages], ids=lambda fault: fault.name)
def test_ours_passes_on_the_io_lane(redis_stack, fault):
    result = fault(0.002, "io").play("ours")
    assert result.passed, result
    assert result.strikes
    assert result.fault == f"{fault.name}, io lane"


@pytest.mark.redis
@pytest.mark.worker
def test_negative_control_stock_fails_where_ours_passes(redis_stack, monkeypatch):
    monkeypatch.setattr(stage, "QUIET", 6.0)
    result = BadMessages(0.002).play("stock")
    assert not result.passed
    assert result.ended


def test_a_fault_that_did_not_happen_is_no_pass(tmp_path):
    nothing = ChildKill(0.001)
    result = nothing.result(SimpleNamespace(kind="ours", ended=[], ledger=tmp_path / "ledger"), Count(), 0.0)
    assert (result.strikes, result.lost, result.passed) == (0, 0, False)
    assert "FAILED" in "\n".join(lines_of([result]))
    assert "**failed**" in markdown_of([result])


def test_a_drill_fails_by_what_a_caller_saw_whatever_the_sums_say(tmp_path):
    fault, ledger = ChildKill(0.001), tmp_path / "ledger"
    fault.strikes = 1
    stage = SimpleNamespace(kind="ours", ended=[], ledger=ledger)
    seen = "asked a 1 0.5\nsent a 1 1.0\nstart a 7 2.0\nend a 7 3.0\nanswered a 1 4.0\n"
    ledger.write_text(seen)
    assert fault.result(stage, read(ledger), 0.0).passed
    ledger.write_text(seen + "answered a 1 5.0\n")
    result = fault.result(stage, read(ledger), 0.0)
    assert (result.passed, result.seen) == (False, "a was answered 2 times")


def test_a_fault_that_this_machine_cannot_play_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(Partition, "unavailable", classmethod(lambda _: "network namespaces need root"))
    done = CliRunner().invoke(command, ["--only", "partition", "--json"])
    assert done.exit_code == 0
    results = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert [(one["kind"], one["passed"], one["skipped"]) for one in results] == [
        ("ours", False, "network namespaces need root"), ("stock", False, "network namespaces need root"),
    ]  # fmt: skip
    assert "skipped: network namespaces need root" in "\n".join(lines_of([Partition(1.0).skip("ours")]))


def test_what_a_caller_was_told_of_is_not_lost():
    assert Count(sent=frozenset({"a", "b"}), told=frozenset({"a"})).lost == 1


def test_the_command_lists_its_faults():
    listing = [sys.executable, "-m", "celery", "-A", "graft", "drill", "--list"]
    done = subprocess.run(listing, capture_output=True, text=True, timeout=60, check=True)
    assert all(fault.name in done.stdout for fault in FAULTS)
    wrong = subprocess.run([*listing[:-1], "--only", "nothing"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert "there is no fault 'nothing'" in wrong.stderr
