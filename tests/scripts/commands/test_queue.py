"""Queues are looked into without being touched, and what is taken out of one is neither lost nor waited for in vain."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

import graft
from graft.compat.async_patterns import bounded_pipeline
from graft.config.deployment import app
from graft.config.queues import own_names
from graft.config.transport import quarantine
from graft.scripts.commands.batch import command as batches_command
from graft.scripts.commands.dead_letters import command as dead_letters_command
from graft.scripts.commands.quarantine import command as quarantine_command
from graft.scripts.commands.queue import command
from graft.tasks import codec
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.errors import CancelledBatchError
from graft.tasks.messages import payloads
from graft.tasks.messages.message_format import lists
from graft.tasks.monitoring import worker_registry
from graft.tasks.queues import pause, peek, purge
from graft.tasks.shared.channel import SharedChannel
from graft.tasks.shared.pipeline_figures import PipelineFigures
from tests import samples
from tests.stack import run_python, wait_until

pytestmark = pytest.mark.acl_role("operator")

WAIT = 60.0
QUEUE = "heavy"
made: list[str] = []


def run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(command, list(arguments), input=answer)


@pytest.fixture(scope="module")
def unread(stack: Any) -> Iterator[None]:
    """Have no worker read the queue."""
    pause.pause(QUEUE)
    wait_until(lambda: readers() == 0, WAIT, "the workers to obey")
    yield
    pause.resume(QUEUE)
    wait_until(lambda: readers() > 0, WAIT, "the workers to be back")


@pytest.fixture
def paused(unread: None, redis: Any) -> Iterator[Any]:
    """A queue that no worker reads, and no dead letters."""
    redis.delete(dead_letters.LETTERS, dead_letters.INDEX)
    yield redis
    while made:
        purge.cancel(made.pop())  # Or its sender would miss and send again what is wiped.
    redis.delete(dead_letters.LETTERS, dead_letters.INDEX, *lists(QUEUE))


def readers() -> int:
    listed = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    return next(int(line["readers"]) for line in listed if line["name"] == QUEUE)


def waiting(redis: Any) -> list[bytes]:
    return [raw for key in lists(QUEUE) for raw in redis.lrange(key, 0, -1)]


def submit(*arguments: Any, **options: Any) -> Any:
    batch = graft.submit(*arguments, queue=QUEUE, **options)
    made.append(batch.id)
    return batch


def sent(count: int, redis: Any, func: Any = samples.square) -> Any:
    """A batch of so many messages of one item each, which wait."""
    before = len(waiting(redis))
    batch = submit(func, range(count), batch_size=1, in_flight=count)
    wait_until(lambda: len(waiting(redis)) == before + count, WAIT, "the messages to wait")
    return batch


def forged(raw: bytes, **changes: Any) -> bytes:
    """The message in *raw* as somebody without the key would send it."""
    message = json.loads(raw)
    message["headers"].pop("graft_signature")
    message["headers"].update(changes)
    return json.dumps(message).encode()


def test_every_queue_is_listed_with_what_it_is_for_and_whether_it_is_paused(paused):
    shown = run("list").stdout
    assert all(name in shown for name in own_names())
    assert "paused" in next(line for line in shown.splitlines() if line.startswith(QUEUE))
    assert "long computations" in shown


@pytest.mark.parametrize("group", [command, batches_command, dead_letters_command, quarantine_command])
def test_the_help_shows_examples_line_by_line_and_fits_a_terminal(group):
    shown = CliRunner().invoke(group, ["--help"]).stdout
    assert re.search(r"\n    celery -A graft \S+ list", shown)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("verb", ["peek", "pause", "resume", "purge"])
def test_an_unknown_queue_is_refused_and_the_known_ones_are_named(redis, verb):
    done = run(verb, "nowhere")
    assert done.exit_code == 2
    assert "there is no queue 'nowhere'; there are maintenance, high" in done.stderr


def test_the_queue_of_the_checks_is_not_paused(redis):
    done = run("pause", "maintenance")
    assert done.exit_code == 2
    assert "stop Beat instead" in done.stderr
    assert "maintenance" not in pause.paused()


def test_a_look_shows_what_is_next_and_takes_nothing(paused):
    batch = submit(samples.square, range(6), batch_size=3, in_flight=2, priority=1)
    wait_until(lambda: len(waiting(paused)) == 2, WAIT, "the messages to wait")
    seen = [json.loads(line) for line in run("peek", QUEUE, "--json").stdout.splitlines()]
    assert [(one["function"], one["items"], one["priority"]) for one in seen] == [("tests.samples:square", 3, 4)] * 2
    assert {one["batch"] for one in seen} == {batch.id}
    assert [one["flaw"] for one in seen] == ["", ""]
    assert "tests.samples:square" in run("peek", QUEUE).stdout
    assert len(waiting(paused)) == 2
    assert not batch.done()


class Touch:
    """Its pickle makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_look_opens_nothing_and_says_what_workers_would_refuse(paused, tmp_path):
    sent(1, paused)
    trap = tmp_path / "opened"
    raw = json.loads(forged(waiting(paused)[0], id="\x1b[2Jclear", argsrepr="\x1b]0;title\x07"))
    raw["body"] = codec.as_text(json.dumps([[codec.as_text(pickle.dumps(Touch(trap)))], {}, {}]).encode())
    paused.lpush(QUEUE, json.dumps(raw), "no message at all")
    done = run("peek", QUEUE)
    assert done.exit_code == 0
    assert "bad_signature: it is not signed" in done.stdout
    assert "malformed_json" in done.stdout
    assert "\x1b" not in done.stdout
    assert run("purge", QUEUE, "--yes").exit_code == 0
    assert not trap.exists()


def test_what_is_purged_is_kept_its_caller_is_told_and_a_replay_runs_it(paused):
    batch = sent(3, paused)
    done = run("purge", QUEUE, "--yes", "--json")
    assert json.loads(done.stdout) == {"dead_letters": 3, "quarantined": 0, "dropped": 0, "items": 3}
    with pytest.raises(CancelledBatchError, match="purged from the queue heavy"):
        batch.collect(WAIT)
    wait_until(batch.done, WAIT, "the end of the batch")
    assert not waiting(paused)
    letters = dead_letters.newest()
    assert {(one.function, one.queue, one.items) for one in letters} == {("tests.samples:square", QUEUE, 1)}
    again = CliRunner().invoke(dead_letters_command, ["replay", "--queue", QUEUE, "--to", "default", "--yes"])
    assert again.exit_code == 0, again.output
    for letter in letters:
        wait_until(lambda one=letter: app().AsyncResult(one.id).state == "SUCCESS", WAIT, "the replayed message to run")


def test_a_purged_envelope_takes_its_content_along(paused):
    content = "x" * (2 * payloads.INLINE)
    submit(samples.identity, [content])
    wait_until(lambda: waiting(paused), WAIT, "the message to wait")
    assert run("purge", QUEUE, "--yes").exit_code == 0
    (letter,) = dead_letters.newest()
    assert not paused.exists(payloads.BODY + letter.id)
    assert len(letter.envelope) > len(content)


def test_a_purged_task_goes_on_with_its_chain_when_it_is_replayed(paused):
    first = app().signature("process_item", args=[{"id": 1, "value": 2}])
    last = app().signature("process_item", args=[{"id": 2, "value": 3}], immutable=True)
    result = (first.set(queue=QUEUE) | last.set(queue="default")).apply_async()
    wait_until(lambda: waiting(paused), WAIT, "the first of the chain to wait")
    assert run("purge", QUEUE, "--yes").exit_code == 0
    (letter,) = dead_letters.newest()
    again = CliRunner().invoke(dead_letters_command, ["replay", letter.id, "--to", "default", "--yes"])
    assert again.exit_code == 0, again.output
    wait_until(lambda: app().AsyncResult(result.id).ready(), WAIT, "the last of the chain")


def test_whoever_waits_for_a_reduced_batch_is_told(paused):
    batch = submit(samples.square, range(4), reduce=sum, batch_size=1)
    wait_until(lambda: waiting(paused), WAIT, "the messages to wait")
    assert run("purge", QUEUE, "--yes").exit_code == 0
    with pytest.raises(CancelledBatchError):
        batch.collect(WAIT)


def test_what_is_dropped_is_gone_and_its_caller_is_told(paused):
    batch = sent(2, paused)
    done = run("purge", QUEUE, "--drop", "--yes")
    assert "Dropped 2 messages" in done.stderr
    with pytest.raises(CancelledBatchError):
        batch.collect(WAIT)
    assert not waiting(paused)
    assert not dead_letters.count()


def test_nothing_is_taken_out_without_a_yes_or_in_a_dry_run(paused):
    sent(2, paused)
    assert run("purge", QUEUE).exit_code == 2
    done = run("purge", QUEUE, "--dry-run")
    assert done.exit_code == 0
    assert "2 messages (2 items) of heavy" in done.stderr
    assert len(waiting(paused)) == 2


def test_a_filter_leaves_the_rest_in_its_order(paused):
    sent(2, paused)
    kept = waiting(paused)
    sent(2, paused, samples.identity)
    assert run("purge", QUEUE, "--function", "*:identity", "--yes").exit_code == 0
    assert waiting(paused) == kept
    assert "Nothing matches" in run("purge", QUEUE, "--older-than", "1h", "--yes").stderr


def test_the_messages_of_a_queue_are_counted_by_callable(paused):
    for func, count in ((samples.square, 3), (samples.identity, 1)):
        sent(count, paused, func)
    groups = [json.loads(line) for line in run("peek", QUEUE, "--group", "--json").stdout.splitlines()]
    assert [(one["function"], one["messages"], one["items"]) for one in groups] == [
        ("tests.samples:square", 3, 3), ("tests.samples:identity", 1, 1),
    ]  # fmt: skip
    assert "tests.samples:square" in run("peek", QUEUE, "--group").stdout


def test_what_was_quarantined_is_shown_and_sent_again_once_workers_would_take_it(paused):
    def quarantined(*arguments: str) -> Result:
        return CliRunner().invoke(quarantine_command, list(arguments))

    paused.delete(quarantine.MESSAGES)
    sent(1, paused)
    (raw,) = waiting(paused)
    paused.delete(*lists(QUEUE))
    quarantine.keep(paused, "", raw, QUEUE, "unknown_task", "tests.samples was not imported")
    quarantine.keep(paused, "", forged(raw), QUEUE, "bad_signature", "no \x1b[31msignature")
    bad, good = [json.loads(line) for line in quarantined("list", "--json").stdout.splitlines()]
    assert (good["reason"], bad["reason"]) == ("unknown_task", "bad_signature")
    shown = quarantined("show", bad["id"]).stdout
    assert "bad_signature" in shown
    assert "tests.samples:square" in shown
    assert "\x1b" not in shown
    assert quarantined("replay", "--yes").exit_code == 2
    done = quarantined("replay", "--all", "--yes")
    assert done.exit_code == 1
    assert "Sent 1 of 2 messages" in done.stderr
    assert f"{bad['id']} is kept: workers would refuse it again" in done.stderr
    assert waiting(paused) == [raw]
    (left,) = [json.loads(line) for line in quarantined("list", "--json").stdout.splitlines()]
    assert left["id"] == bad["id"]
    assert "Removed 1 message." in quarantined("drop", bad["id"][:6], "--yes").stderr
    assert not paused.llen(quarantine.MESSAGES)


def test_a_queue_is_said_to_be_paused_when_no_worker_takes_from_it(stack, redis):
    try:
        done = run("pause", "low")
        assert (done.exit_code, "Paused: low" in done.stderr) == (0, True)
        assert not [worker for worker in worker_registry.workers() if "low" in worker.queues]
    finally:
        pause.resume("low")
    wait_until(lambda: any("low" in worker.queues for worker in worker_registry.workers()), WAIT, "readers again")


def test_what_workers_would_refuse_goes_where_they_put_it(paused):
    batch = sent(1, paused)
    (raw,) = waiting(paused)
    paused.lpush(QUEUE, forged(raw, argsrepr="(another:function, 1 items from 0)"))
    before = paused.llen(quarantine.MESSAGES)
    assert json.loads(run("purge", QUEUE, "--function", "another:*", "--yes", "--json").stdout)["quarantined"] == 1
    assert paused.llen(quarantine.MESSAGES) == before + 1
    assert json.loads(paused.lindex(quarantine.MESSAGES, 0))["reason"] == "bad_signature"
    assert not batch.done()
    assert not dead_letters.count()


SEND = """
import time, graft
from graft.tasks.queues import peek
from tests import samples
graft.submit(samples.square, range(400), batch_size=1, in_flight=400)
while len(peek.peek("batch", 400)) < 400: time.sleep(0.05)
"""


def test_a_purge_that_is_killed_half_way_loses_nothing(fresh_stack):
    stack = fresh_stack(cpu=0)
    made = run_python(stack, SEND)
    assert made.returncode == 0, made.stderr
    argv = [sys.executable, "-m", "celery", "-A", "graft", "queue", "purge", "batch", "--yes"]
    with stack.connect() as client:

        def queued() -> set[str]:
            found = [peek.read(raw, 0).id for key in lists("batch") for raw in client.lrange(key, 0, -1)]
            assert len(found) == len(set(found))
            return set(found)

        def kept() -> set[str]:
            return {name.decode() for name in client.hkeys(dead_letters.LETTERS)}

        ids = queued()
        with subprocess.Popen(argv, env=stack.env, stderr=subprocess.DEVNULL) as purging:
            wait_until(lambda: client.hlen(dead_letters.LETTERS) > 20, WAIT, "a few to be purged")
            os.kill(purging.pid, signal.SIGKILL)
        left = queued()
        assert left, "killed too late to prove anything"
        assert left | kept() == ids
        assert len(left & kept()) <= 1  # The one whose letter was written and which was not taken out.
        done = subprocess.run(argv, env=stack.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not queued()
        assert kept() == ids


# ---- channels and pipelines ------------------------------------------------------------------------------------------


def listed(kind: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run("channels", "--json").stdout.splitlines()]
    return [line for line in lines if (line["kind"], line["name"]) == (kind, name)]


def test_a_named_channel_is_shown_with_what_waits_in_it_and_who_takes_part(redis_stack: Any) -> None:
    name = f"orders-{uuid4()}"
    shared = SharedChannel(name, 3, lease=30.0)
    for number in range(3):
        assert shared.send("s", shared.seal(number))
    shared.send("t", shared.seal(3))
    shared.renew("receiver", "r")
    (line,) = listed("channel", name)
    assert line == {"kind": "channel", "name": name, "waiting": 3, "capacity": 3, "senders": 2, "receivers": 1}
    assert re.search(rf"{name} +3 +3 +2 +1\n", run("channels").stdout)
    shared.close("sender", "t")
    assert shared.receive("r") == [0]
    (line,) = listed("channel", name)
    assert (line["waiting"], line["senders"]) == (2, 1)
    shared.close("sender", "s")
    shared.close("receiver", "r")
    assert listed("channel", name) == []


def test_a_named_pipeline_is_shown_while_it_runs_and_after_its_end(redis_stack: Any) -> None:
    name = f"import-{uuid4()}"
    goes_on = threading.Event()

    async def slow(item: Any) -> Any:
        await asyncio.to_thread(goes_on.wait, WAIT)
        return item

    pipeline = bounded_pipeline([int, slow], [1, 1], name=name)
    with ThreadPoolExecutor(1) as thread:
        ran = thread.submit(lambda: asyncio.run(pipeline.run(["1", "no number", *"23456"])))
        try:
            wait_until(lambda: listed("pipeline", name), what="figures of the pipeline")
            (line,) = listed("pipeline", name)
        finally:
            goes_on.set()
        assert ran.result(WAIT) == [1, 2, 3, 4, 5, 6]
    assert line["state"] == "runs"
    assert line["processed"][1] == 0
    wait_until(lambda: listed("pipeline", name)[0]["is_over"], what="the last figures")
    (line,) = listed("pipeline", name)
    assert (line["processed"], line["skipped"], line["state"]) == ([6, 6], [1, 0], "ended")
    assert line["waits"][0] > 0
    assert re.search(rf"{name} +ended +6 > 6 +1 > 0 +{line['waits'][0]} *\n", run("channels").stdout)


def test_a_pipeline_that_has_not_ended_and_says_nothing_is_lost() -> None:
    figures = PipelineFigures("p", [1], [0], [], at=100.0)
    assert [figures.state(now) for now in (100.0, 109.0, 111.0)] == ["runs", "runs", "lost"]
