"""Batches share workers evenly from the moment in which each begins, whatever the others have sent. Counted in runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import signals

import graft
from graft.compat.executor import CeleryExecutor
from graft.tasks.messages.message_format import lists
from tests.stack import ROOT, wait_until

WAIT = 120.0
HUGE, SMALL = 600, 24


def note(job: tuple[str, float]) -> None:
    """A run that takes a while, and leaves a line behind."""
    time.sleep(job[1])
    leave_mark(job[0])


def note_of_another_length(job: tuple[str, float]) -> None:
    """The same; how long a function takes is remembered by its name."""
    note(job)


def leave_mark(path: str) -> None:
    for name, mark in ((path, "."), (Path(path).with_name("order"), Path(path).name[0])):
        with open(name, "a") as file:
            file.write(mark)


async def note_on_the_loop(job: tuple[str, float]) -> None:
    await asyncio.sleep(job[1])
    leave_mark(job[0])


def runs(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def runs_between(folder: Path) -> int:
    """Runs of the huge batch between the first and the last of the small one, however long either took to be sent."""
    order = (folder / "order").read_text()
    return order[order.index("s") : order.rindex("s")].count("h")


def waiting(redis: Any) -> int:
    """Envelopes on the queue of batches."""
    return sum(redis.llen(key) for key in lists("batch"))


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[Path]:
    """What a huge batch has run, once it is under way; it is cancelled at the end of the test."""
    yield from _begun(tmp_path / "huge", {})


def _begun(path: Path, options: dict[str, Any], seconds: float = 0.05) -> Iterator[Path]:
    batch = graft.submit(note, [(str(path), seconds)] * HUGE, batch_size=1, in_flight=200, **options)
    wait_until(lambda: runs(path) >= 4, what="the huge batch is under way")
    yield path
    batch.cancel()


def test_a_small_batch_shares_the_workers_with_a_huge_one_from_the_moment_it_begins(stack, huge, tmp_path):
    before = runs(huge)
    graft.submit(note, [(str(tmp_path / "small"), 0.05)] * SMALL, batch_size=1).collect(WAIT)
    meanwhile = runs(huge) - before
    assert SMALL / 2 <= meanwhile <= 2 * SMALL  # Without turns: the 200 envelopes that wait.


def test_envelopes_of_another_length_are_weighed_by_their_time(stack, huge, tmp_path):
    before = runs(huge)
    quick = [(str(tmp_path / "small"), 0.01)] * 120
    graft.submit(note_of_another_length, quick, batch_size=1).collect(WAIT)
    assert runs(huge) - before <= 80  # 24 have as much work; with turns by number 120.


@pytest.mark.parametrize("seconds", [0.3, 0.01])
def test_a_huge_batch_of_which_nothing_was_known_is_put_in_its_place_once_it_is(stack, tmp_path, seconds):
    def unknown(job: tuple[str, float]) -> None:
        import time

        time.sleep(job[1])
        with open(job[0], "a") as file:
            file.write(".")

    small = 24
    known = note_of_another_length
    graft.submit(known, [(str(tmp_path / "known"), seconds)] * 20, batch_size=1).collect(WAIT)
    huge = tmp_path / "huge"
    batch = graft.submit(unknown, [(str(huge), seconds)] * HUGE, batch_size=1, in_flight=HUGE)
    wait_until(lambda: runs(huge) >= 4, what="the huge batch is under way")
    before = runs(huge)
    graft.submit(known, [(str(tmp_path / "small"), seconds)] * small, batch_size=1).collect(WAIT)
    assert small / 3 <= runs(huge) - before <= 2 * small
    batch.cancel()


def test_a_batch_with_three_times_the_share_gets_three_times_as_much(stack, huge, tmp_path):
    before = runs(huge)
    graft.submit(note, [(str(tmp_path / "small"), 0.05)] * 48, batch_size=1, share=3).collect(WAIT)
    assert 8 <= runs(huge) - before <= 30  # 16 for 48; 48 with equal shares.


def test_single_calls_of_an_executor_share_them_too(stack, huge, tmp_path):
    with CeleryExecutor(max_workers=4) as executor:
        before = runs(huge)
        list(executor.map(note, [(str(tmp_path / "small"), 0.05)] * SMALL))
    assert runs(huge) - before <= 3 * SMALL


def test_processes_share_them_as_batches_of_one_do(stack, huge, tmp_path):
    small = tmp_path / "small"
    code = (
        "import sys; from tests.tasks.sending.test_fair_shares import note; import graft\n"
        f"graft.submit(note, [({str(small)!r}, 0.05)] * {SMALL}, batch_size=1).collect({WAIT})"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=stack.env_of("producer"), cwd=ROOT) as program:
        assert program.wait(WAIT) == 0
    assert runs_between(tmp_path) <= 2 * SMALL


def test_a_process_that_observes_what_it_sends_takes_turns_as_well(stack, huge, tmp_path):
    seen: list[str] = []

    def observe(sender: str, **_: Any) -> None:
        seen.append(sender)

    signals.before_task_publish.connect(observe)
    try:
        before = runs(huge)
        graft.submit(note, [(str(tmp_path / "small"), 0.05)] * SMALL, batch_size=1).collect(WAIT)
    finally:
        signals.before_task_publish.disconnect(observe)
    assert len(seen) >= SMALL
    assert runs(huge) - before <= 2 * SMALL


@pytest.mark.parametrize("share", [1, 3])
def test_a_durable_batch_which_workers_send_takes_its_share_and_no_more(stack, redis, tmp_path, share):
    path = tmp_path / "huge"
    batch = graft.submit(note, [(str(path), 0.05)] * HUGE, batch_size=1, in_flight=200, durable=True, share=share)
    try:
        # A share that is not used is lost: both have all on the queue that they need, whoever is slow to send.
        wait_until(lambda: waiting(redis) >= 150 and runs(path) >= 4, what="the huge batch is under way")
        small = [(str(tmp_path / "small"), 0.05)] * SMALL
        graft.submit(note, small, batch_size=1, in_flight=SMALL).collect(WAIT)
    finally:
        batch.cancel()
    assert SMALL * share / 2 <= runs_between(tmp_path) <= 2 * SMALL * share + 10


def test_coroutines_share_the_io_lane(fresh_stack, tmp_path):
    stack = fresh_stack(cpu=0, io=2)
    huge, small = tmp_path / "huge", tmp_path / "small"
    code = f"""
import graft
from tests.stack import wait_until
from tests.tasks.sending.test_fair_shares import note_on_the_loop, runs
from pathlib import Path
huge = Path({str(huge)!r})
batch = graft.submit(note_on_the_loop, [(str(huge), 0.05)] * {HUGE}, batch_size=1, in_flight=200)
wait_until(lambda: runs(huge) >= 4)
before = runs(huge)
graft.submit(note_on_the_loop, [({str(small)!r}, 0.05)] * {SMALL}, batch_size=1).collect({WAIT})
print(runs(huge) - before)
batch.cancel()
"""
    program = subprocess.run(
        [sys.executable, "-c", code], env=stack.env, cwd=ROOT, capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert runs(small) == SMALL
    assert int(program.stdout) <= 2 * SMALL


@pytest.mark.parametrize(("share", "kind"), [(0, ValueError), (-1, ValueError), (5000, ValueError), ("2", TypeError)])
def test_a_share_that_means_nothing_is_refused(share, kind):
    with pytest.raises(kind, match=r"share=.*must be"):
        graft.submit(note, [], share=share)
