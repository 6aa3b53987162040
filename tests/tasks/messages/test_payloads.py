"""Large envelopes travel beside their message: the queue stays small, and nothing is lost or left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import graft
from graft.tasks.errors import TaskQueueError
from graft.tasks.messages import payloads
from tests import samples
from tests.people import held, letters
from tests.stack import run_python, wait_until

WAIT = 60.0
LARGE = 200 << 10


def test_a_large_item_leaves_the_queue_small_and_nothing_behind(stack, redis):
    with held("heavy"):
        batch = graft.submit(samples.identity, [os.urandom(LARGE)], queue="heavy", batch_size=1)
        wait_until(lambda: redis.llen("heavy\x06\x165") == 1, what="the message")
        message = json.loads(redis.lindex("heavy\x06\x165", 0))
        assert len(message["body"]) < 1000
        (key,) = redis.scan_iter(payloads.BODY + "*")
        assert redis.strlen(key) > LARGE
        assert redis.ttl(key) > 0
    assert len(batch.collect(WAIT)[0]) == LARGE
    wait_until(lambda: not redis.exists(key), what="the body to be dropped")


@pytest.mark.parametrize("size", [payloads.INLINE - 200, payloads.INLINE, payloads.INLINE + 200, LARGE])
def test_values_come_back_whole_on_both_sides_of_the_limit(stack, size):
    items = [os.urandom(size) for _ in range(3)]
    assert graft.submit(samples.identity, items, batch_size=1).collect(WAIT) == items


def test_retries_of_large_items_keep_what_is_left(stack, tmp_path):
    log = tmp_path / "runs"

    def fail_once(item: bytes, path: str = str(log)) -> int:
        log = Path(path)
        with log.open("a") as file:
            file.write(f"{item[0]}\n")
        if log.read_text().split().count(str(item[0])) == 1 and item[0] % 2:
            raise OSError("not yet")
        return item[0]

    items = [bytes([number]) * LARGE for number in range(4)]
    assert graft.submit(fail_once, items, batch_size=4, retry=1).collect(WAIT) == [0, 1, 2, 3]
    assert sorted(log.read_text().split()) == ["0", "1", "1", "2", "3", "3"]


def test_a_body_that_is_gone_is_told_to_the_caller_and_buried(stack, redis):
    before = {letter.id for letter in letters()}
    with held("heavy"):
        batch = graft.submit(samples.identity, [os.urandom(LARGE)], queue="heavy", batch_size=1)
        wait_until(lambda: redis.llen("heavy\x06\x165") == 1, what="the message")
        redis.delete(*redis.scan_iter(payloads.BODY + "*"))
    with pytest.raises(TaskQueueError, match="is gone from Redis"):
        batch.collect(WAIT)
    (letter,) = [letter for letter in letters() if letter.id not in before]
    assert letter.reason == "bad_envelope"


KILLED = """
import os
import graft

def work(item, path=os.environ["RUNS"]):
    with open(path, "a") as file:
        file.write("x")
    if len(open(path).read()) == 1:
        os._exit(3)
    return len(item)

print(graft.submit(work, [os.urandom(300_000)]).collect(60))
"""


def test_a_message_that_is_delivered_again_finds_its_body(fresh_stack, tmp_path):
    done = run_python(fresh_stack(cpu=1), KILLED, env={"RUNS": str(tmp_path / "runs")})
    assert (done.stdout, done.stderr) == ("[300000]\n", "")
