"""The drill counts honestly: it passes ours, fails what it should, and a fault that did not happen passes nobody."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.scripts.commands.drill import chosen, lines_of, markdown_of
from graft.scripts.drill import stage
from graft.scripts.drill.catalogue import FAULTS
from graft.scripts.drill.faults.messages import BadMessages
from graft.scripts.drill.faults.processes import ChildKill, Rolling, WorkerKill
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
    assert chosen([]) == [fault for fault in FAULTS if fault is not Soak]
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


@pytest.mark.parametrize("scale", [0.001, 0.05, 1.0])
def test_a_scale_leaves_every_fault_something_to_do(scale):
    for fault in FAULTS:
        made = fault(scale)
        assert made.tasks >= 60 or scale == 1.0
        assert 1 <= made.times() <= fault.full_strikes


@pytest.mark.redis
@pytest.mark.worker
@pytest.mark.parametrize("fault", [WorkerKill, BadMessages], ids=lambda fault: fault.name)
def test_ours_passes(redis_stack, fault):
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


def test_a_fault_that_did_not_happen_is_no_pass():
    nothing = ChildKill(0.001)
    result = nothing.result(SimpleNamespace(kind="ours", ended=[]), Count(), 0.0)
    assert (result.strikes, result.lost, result.passed) == (0, 0, False)
    assert "FAILED" in "\n".join(lines_of([result]))
    assert "**failed**" in markdown_of([result])


def test_the_command_lists_its_faults():
    command = [sys.executable, "-m", "celery", "-A", "graft", "drill", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert all(fault.name in done.stdout for fault in FAULTS)
    wrong = subprocess.run([*command[:-1], "--only", "nothing"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert "there is no fault 'nothing'" in wrong.stderr
