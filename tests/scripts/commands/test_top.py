"""The live view: what it shows fits the screen, its rates are right, and its keys do what they say."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import graft
from graft.config.deployment import app
from graft.config.queues import own_names
from graft.scripts.commands.top.view import frame, line
from graft.scripts.snapshot import QueueLine, Rates, Snapshot, WorkerLine, current, rates, seconds_left, take
from graft.tasks.health.verdicts import HealthReport, Verdict
from graft.tasks.monitoring import worker_registry
from graft.tasks.monitoring.function_stats import FunctionStats
from graft.tasks.queues import pause, peek
from graft.tasks.queues.peek import Waiting
from graft.tasks.sending import progress
from graft.tasks.sending.progress import BatchNote
from graft.tasks.shared.limit_states import LimitState, OpenBreaker
from tests import samples
from tests.stack import wait_until

WAIT = 60.0


def queue(name: str = "batch", waiting: int = 0, taken: int = 0, **more: object) -> QueueLine:
    fields = {"oldest": None, "readers": 1, "is_paused": False, **more}
    return QueueLine(name=name, waiting=waiting, taken=taken, **fields)  # type: ignore[arg-type]


def note(done: int = 50, total: int | None = 100, seconds: float = 10.0) -> BatchNote:
    return BatchNote("an-id", "a.module:function", "batch", total, done, done, 0, 0, seconds, 0.0, "here/1")


OPEN = OpenBreaker("bank[acme]", "half_open", 5, 30.0, 1.0)


def crowded(workers: int, batches: int, limits: int = 0) -> Snapshot:
    return Snapshot(
        at=time.time(),
        queues=tuple(queue(name, 10**6, 10**9, oldest=10**6) for name in own_names()),
        workers=tuple(
            WorkerLine(f"worker{n}@{'host' * 20}", "prefork", 8, 8, 8, 1 << 40, 0, 9.9) for n in range(workers)
        ),
        batches=(note(),) * batches,
        limits=tuple(
            LimitState(
                f"limit{n}{'x' * 60}", "10/minute by tenant", 0.0, 3, 10**9, {"rate": 10**9}, 1, 5, 10**6, (OPEN,)
            )
            for n in range(limits)
        ),
        functions={f"module:{'function' * 20}{n}": FunctionStats(10**9, 1.0, 10**9, time.time()) for n in range(30)},
        dead_letters=10**9,
        health="failing",
        bad=("a check",) * 50,
    )


def drawn(now: Snapshot, width: int, height: int, peeked: list[Waiting] | None = None) -> list[str]:
    console = Console(width=width, height=height, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(frame(now, Rates(), "batch", peeked, "", width, height))
    return capture.get().splitlines()


@given(
    workers=st.integers(0, 40), batches=st.integers(0, 40), peeks=st.none() | st.integers(0, 40),
    limits=st.integers(0, 40),
)  # fmt: skip
def test_everything_fits_eighty_by_twenty_four_whatever_there_is(workers, batches, peeks, limits):
    peeked = None if peeks is None else [Waiting("id" * 20, "task" * 20, "what" * 40, 9, 10**9, 0.0)] * peeks
    shown = drawn(crowded(workers, batches, limits), 80, 24, peeked)
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 80
    assert "q quit" in shown[-1]
    assert all(any(line.startswith(name) for line in shown) for name in own_names())


def test_what_does_not_fit_is_counted():
    shown = "\n".join(drawn(crowded(40, 40), 80, 24))
    assert len(re.findall(r"… \d+ more", shown)) == 2


def test_limits_that_keep_items_waiting_come_first():
    quiet = LimitState("quiet", "5/second", 0.0, 1, 7, {"rate": 0})
    bank = LimitState("bank", "breaker after 5 failures", 0.0, 1, 40, {"breaker": 12}, 1, 0, 0, (OPEN,))
    now = Snapshot(0.0, (queue(),), limits=(quiet, bank))
    shown = [line for line in drawn(now, 120, 40) if line.startswith(("quiet", "bank"))]
    assert shown[0].split()[-3:] == ["40", "12", "half-open"]
    assert shown[1].startswith("quiet")
    assert "limit bank: half-open" in line(now, Rates())
    assert "quiet" not in line(now, Rates())


def test_an_empty_deployment_says_what_to_start():
    assert any("celery -A graft worker" in line for line in drawn(Snapshot(0.0, (queue(),)), 80, 24))


@given(
    taken=st.integers(0, 10**6), before=st.integers(0, 10**6), after=st.integers(0, 10**6), seconds=st.floats(0.1, 60)
)
def test_what_came_in_is_what_left_and_what_was_added(taken, before, after, seconds):
    speed = rates(Snapshot(0.0, (queue(waiting=before),)), Snapshot(seconds, (queue(waiting=after, taken=taken),)))
    assert speed.out["batch"] == pytest.approx(taken / seconds)
    assert speed.into["batch"] == pytest.approx(max(0, after - before + taken) / seconds)


def test_the_time_left_is_said_when_it_is_known():
    assert seconds_left(note(done=50, total=100, seconds=10.0)) == pytest.approx(10.0)
    assert seconds_left(note(done=0)) is None
    assert seconds_left(note(total=None)) is None


def test_one_look_is_one_line_for_pipes():
    now = Snapshot(0.0, (queue(waiting=3, is_paused=True),), batches=(note(),), health="ok", dead_letters=2)
    told = line(now, Rates())
    for part in ("health=ok", "batch=3(paused)", "dead-letters=2", "50/100", "left=10 s"):
        assert part in told
    assert "\n" not in told


def test_the_facts_of_the_moment_overrule_an_old_report():
    fine = HealthReport(1000.0, (Verdict("workers", "", "ok", ""), Verdict("beat", "", "degraded", "")))
    full = [queue(waiting=71, readers=0)]

    def bad(report: HealthReport | None, now: float, alive: int, queues: Any = full) -> dict[str, str]:
        found = current(report, queues, alive, now)
        return {verdict.name: verdict.state for verdict in found if verdict.state != "ok"}

    assert bad(fine, 1030.0, 0) == {"workers": "failing", "depth batch": "failing", "beat": "degraded"}
    assert bad(fine, 1030.0, 1, [queue()]) == {"beat": "degraded"}
    assert bad(fine, 2000.0, 1, [queue()]) == {"last check": "failing"}
    assert bad(None, 1000.0, 1, [queue()]) == {}
    lost = HealthReport(1000.0, (Verdict("workers", "", "failing", ""),))
    assert bad(lost, 1030.0, 1, [queue()]) == {}


def test_slots_are_counted_by_lane():
    workers = (WorkerLine("a", "prefork", 2, 2, 0, 0, 0, None), WorkerLine("b", "aio_pool", 0, 1000, 0, 0, 0, 0.0))
    assert "busy=2/2 io=0/1000" in line(Snapshot(0.0, workers=workers), Rates())


def test_without_a_terminal_it_prints_lines(stack):
    argv = [sys.executable, "-m", "celery", "-A", "graft", "top", "--interval", "0.2", "--count", "2"]
    done = subprocess.run(
        argv,
        env=stack.env_of("viewer"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert "workers=2" in done.stdout


@contextmanager
def on_a_terminal(env: dict[str, str]) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """``top`` on a terminal of 80 by 24; the other end of it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    argv = [sys.executable, "-m", "celery", "-A", "graft", "top", "--interval", "0.3"]
    with subprocess.Popen(argv, env={**env, "TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs) as top:
        os.close(theirs)
        try:
            yield ours, top
        finally:
            top.kill()
            os.close(ours)


def read(terminal: int) -> str:
    """The output of the terminal since the last call."""
    shown = b""
    while select.select([terminal], [], [], 0.1)[0]:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # The other end is closed.
            break
    return shown.decode("utf-8", "replace")


@pytest.mark.acl_role("operator")
def test_keys_pause_peek_and_resume_a_queue_and_the_terminal_is_given_back(stack, redis):
    text = ""

    def shows(what: str) -> bool:
        nonlocal text
        text += read(terminal)
        return what in text

    try:
        with on_a_terminal(stack.env) as (terminal, top):
            wait_until(lambda: shows("maintenance"), WAIT, "the first screen")
            os.write(terminal, b"jjjjjj")  # The seventh queue: heavy.
            os.write(terminal, b"p")
            wait_until(lambda: shows("heavy is paused"), WAIT, "the pause to be said")
            assert pause.paused(redis) == {"heavy"}
            wait_until(
                lambda: not [one for one in worker_registry.workers(redis) if "heavy" in one.queues], WAIT, "obedience"
            )
            redis.lpush("heavy", '{"headers": {"id": "a-message", "task": "a.task"}}')
            text = ""
            os.write(terminal, b"\r")
            wait_until(lambda: shows("a.task"), WAIT, "what waits")
            redis.delete("heavy")
            os.write(terminal, b"\rr")
            wait_until(lambda: not pause.paused(redis), WAIT, "the queue to be resumed")
            os.write(terminal, b"q")
            wait_until(lambda: read(terminal) or top.poll() is not None, WAIT, "the end")
            assert top.wait(WAIT) == 0
    finally:
        pause.resume("heavy")
        redis.delete("heavy")


@pytest.mark.acl_role("operator")
def test_workers_take_nothing_from_a_paused_queue_until_it_is_resumed(stack, redis):
    def readers() -> int:
        return next(line.readers for line in take().queues if line.name == "low")

    pause.pause("low")
    try:
        wait_until(lambda: readers() == 0, WAIT, "the workers to obey")
        batch = graft.submit(samples.square, [1, 2, 3], queue="low", batch_size=1)
        wait_until(lambda: len(peek.peek("low")) == 3, WAIT, "the messages to wait")
        peeked = peek.peek("low", 2)
        assert [message.task for message in peeked] == ["graft.batch"] * 2
        assert "tests.samples:square" in peeked[0].what
        assert not batch.done()
    finally:
        pause.resume("low")
    assert batch.collect(WAIT) == [1, 4, 9]
    wait_until(lambda: readers() >= 1, WAIT, "the readers to be back")


@pytest.mark.acl_role("operator")
def test_a_consumer_that_is_cancelled_during_a_pause_stays_cancelled(stack):
    with stack.another_worker("cpu", 1) as worker:

        def reads(queue: str) -> bool:
            return any(beat.name == worker.name and queue in beat.queues for beat in worker_registry.workers())

        try:
            for queue in ("low", "heavy"):
                pause.pause(queue)
                wait_until(lambda queue=queue: not reads(queue), WAIT, "the worker to obey")
            answer = app().control.cancel_consumer("low", destination=[worker.name], reply=True, timeout=WAIT)
            assert answer
        finally:
            pause.resume("low")
            pause.resume("heavy")
        wait_until(lambda: reads("heavy"), WAIT, "the worker to go on")
        assert not reads("low")


def test_the_queue_of_the_checks_is_not_paused(redis):
    with pytest.raises(ValueError, match="stop Beat instead"):
        pause.pause("maintenance")
    with pytest.raises(ValueError, match="there is no queue"):
        pause.pause("nowhere")


def test_a_batch_that_takes_a_while_is_seen_by_others_until_it_is_done(stack, redis):
    batch = graft.submit(samples.pause, range(60), batch_size=1)
    wait_until(lambda: [one for one in progress.running(redis) if one.id == batch.id], WAIT, "the batch to be told")
    (seen,) = [one for one in progress.running(redis) if one.id == batch.id]
    assert (seen.total, seen.function, seen.queue) == (60, "tests.samples:pause", "batch")
    batch.collect(WAIT)
    wait_until(lambda: not [one for one in progress.running(redis) if one.id == batch.id], WAIT, "its end to be told")
