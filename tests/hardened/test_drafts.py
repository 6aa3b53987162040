"""A message made from a draft is the one that Celery makes, and what a draft cannot say goes Celery's way."""

from __future__ import annotations

from typing import Any

import pytest

# Sends the same call both ways, Celery's while somebody looks on, and prints where the two messages differ.
BOTH = """
import json, redis
from base64 import b64decode
from celery import group, signals
from kombu import Producer, Queue
client = redis.Redis.from_url(app.conf.broker_url)
def lists():
    return {key: client.lrange(key, 0, -1) for key in client.keys("*") if client.type(key) == b"list"}
def sent(call):
    client.flushdb()
    call()
    found = {}
    for key, texts in sorted(lists().items()):
        for message in map(json.loads, texts):
            if not isinstance(message, dict): continue
            body = message["body"] = b64decode(message["body"]).decode()
            message["properties"].pop("delivery_tag")
            for name in ("graft_made_at", "graft_signature"): message["headers"].pop(name, None)
            found[key.decode(), message["headers"]["group_index"]] = message
    return found
def watching(**_): pass
def both(call):
    call()  # Declares.
    ours = sent(call)
    signals.before_task_publish.connect(watching)
    theirs = sent(call)
    signals.before_task_publish.disconnect(watching)
    assert ours and len(ours) == len(theirs), (ours, theirs)
    print(ours == theirs or (ours, theirs))
from graft.tasks.sending import drafts
made = []
message = drafts.Draft.message
drafts.Draft.message = lambda *given: made.append(1) or message(*given)
"""
CALLS = [
    'at_once.apply_async(("a",), task_id="1")',
    'at_once.apply_async(kwargs={"text": "b"}, task_id="1", priority=3)',
    'at_once.apply_async(["c"], task_id="1", queue="celery", time_limit=5, soft_time_limit=4)',
    'at_once.apply_async(("d",), task_id="1", ignore_result=True, root_id="r", parent_id="p", reply_to="x")',
    'app.send_task("shop.at_once", ("e",), task_id="1")',
    'app.send_task("shop.elsewhere", task_id="1")',
    'group([at_once.s(text).set(task_id=str(n)) for n, text in enumerate(TEXTS)]).apply_async(task_id="g")',
    'app.send_task("shop.at_once", (1, -2.5, True, None, "", (1, "2"), [3], {"k": [1.5]}), {"x": 1}, task_id="1")',
]
TEXTS = "it's", 'say "so"', "new\nline", "é ü ☃", "back\\slash", "x" * 99, "x" * 101, "y" * 3000, "\x00", "\u202e"


@pytest.mark.parametrize("call", CALLS)
def test_a_message_from_a_draft_is_celerys_own(shop: Any, call: str) -> None:
    code = f"{BOTH}\nTEXTS = {TEXTS!r}\nboth(lambda: {call})\nprint(len(made) > 0)"
    assert shop.run(code).split("\n") == ["True", "True"]


OUT_OF_THE_ORDINARY = {
    "a header": 'at_once.apply_async(("a",), headers={"mine": 1})',
    "a countdown": 'at_once.apply_async(("a",), countdown=30)',
    "an expiry": 'at_once.apply_async(("a",), expires=30)',
    "a link": 'at_once.apply_async(("a",), link=at_once.s())',
    "a chord": "group([at_once.s('a'), at_once.s('b')]) | at_once.si('c')",
    "a compressed one": 'at_once.apply_async(("a",), compression="gzip")',
    "a stamp": "at_once.s('a').set(stamped_headers=['by'], by='me').apply_async()",
    "unhashable": 'at_once.apply_async(("a",), retry_policy={"max_retries": 1})',
    "somebody looks on": 'signals.after_task_publish.connect(watching); at_once.delay("a")',
    "a tracer around publish": (
        "publish = Producer.publish\n"
        "Producer.publish = lambda self, *args, **options: print('seen') or publish(self, *args, **options)\n"
        "at_once.delay('a')"
    ),
    "a router that looks at arguments": (
        "app.amqp.router.routes.insert(0, lambda name, args, *given, **options: {'queue': args[0]})\n"
        "app.conf.task_create_missing_queues = True\n"
        "at_once.delay('elsewhere')\n"
        "print(client.exists('elsewhere'))"
    ),
}


@pytest.mark.parametrize("case", OUT_OF_THE_ORDINARY)
def test_what_is_out_of_the_ordinary_goes_celerys_way(shop: Any, case: str) -> None:
    call = OUT_OF_THE_ORDINARY[case]
    if case == "a chord":
        call = f"({call}).apply_async()"
    printed = shop.run(f"{BOTH}\nat_once.delay('warm')\nmade.clear()\n{call}\nprint(len(made))").split("\n")
    assert printed[-1] == "0"
    if "tracer" in case:
        assert printed[0] == "seen"
    if "router" in case:
        assert printed[0] == "1"


def test_a_call_over_a_lost_connection_is_sent_once(shop: Any) -> None:
    shop.worker()
    code = f"""{BOTH}
at_once.delay("warm").get(timeout=30)
results = []
for n in range(20):
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    results.append(write.delay(str(n)))
print(len(made) > 5, [each.get(timeout=30) for each in results] == [str(n) for n in range(20)])
"""
    assert shop.run(code) == "True True"
    assert shop.lines() == {f"{n}": 1 for n in range(20)}


def test_a_process_that_was_forked_since_says_its_own_name(shop: Any) -> None:
    code = f"""{BOTH}
import os
at_once.delay("warm"), at_once.delay("warm")
if os.fork() == 0:
    client.close()
    call = lambda: (at_once.delay("warm"), client.flushdb(), at_once.apply_async(("a",), task_id="1"))
    call()
    (message,) = [json.loads(each) for key, found in lists().items() if key == b"celery" for each in found]
    print(message["headers"]["origin"].startswith(f"gen{{os.getpid()}}@"), flush=True)
    os._exit(0)
os.wait()
"""
    assert shop.run(code) == "True"
