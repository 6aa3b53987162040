"""A group's tasks leave many in one round trip, and their results are subscribed to likewise; nothing else changes."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from tests.hardened.project import Project
from tests.stack import Stack, wait_until

pytestmark = [pytest.mark.redis]

SIZE = 250
CALLS = """
from celery import group
def calls(*commands):
    found = app.backend.client.info("commandstats")
    return [int(found.get("cmdstat_" + name, {{}}).get("calls", 0)) for name in commands]
{0}
"""


def test_a_group_asks_redis_a_few_times(shop: Project) -> None:
    shop.worker()
    code = CALLS.format(f"""
group(at_once.s("warm") for _ in range(3)).apply_async().get(timeout=30)
names = ("subscribe", "unsubscribe")
before = calls(*names)
result = group([at_once.s(str(number)) for number in range({SIZE})]).apply_async()
print(result.get(timeout=60) == [str(number) for number in range({SIZE})])
print(*[now - then for now, then in zip(calls(*names), before)])
""")
    answer, *counts = shop.run(code).split()
    assert answer == "True"
    assert max(map(int, counts)) < SIZE / 4
    assert min(map(int, shop.run(code, stock=True).split()[1:])) >= SIZE


def test_results_that_came_before_anybody_waited_are_there(shop: Project) -> None:
    shop.worker()
    code = """
first, *others = [at_once.delay(str(number)) for number in range(60)]
heard = []
for other in others:
    other.then(lambda result: heard.append(result.result))
deadline = time.monotonic() + 60
while len(app.backend.client.keys("celery-task-meta-*")) < 60 and time.monotonic() < deadline:
    time.sleep(0.05)
print(first.get(timeout=30))
last = at_once.delay("last")
print(last.get(timeout=30), sorted(map(int, heard)) == list(range(1, 60)))
print([other.get(timeout=30) for other in others] == [str(number) for number in range(1, 60)])
"""
    assert shop.run(code).split("\n") == ["0", "last True", "True"]


def test_lone_calls_leave_few_subscriptions(shop: Project) -> None:
    shop.worker()
    code = """
print(len([at_once.delay(str(n)).get(timeout=30) for n in range(40)]))
for _ in range(40): at_once.delay("forgotten").forget()
time.sleep(1)
print(len(app.backend.client.pubsub_channels("celery-task-meta-*")) <= 16)
"""
    assert shop.run(code).split("\n") == ["40", "True"]


def test_a_group_that_breaks_off_has_sent_what_came_before(shop: Project) -> None:
    """As in stock Celery, so that nobody sends it twice who handles the error."""
    code = CALLS.format("""
try:
    group([*(at_once.s(str(number)) for number in range(7)), at_once.s(object())]).apply_async()
except Exception as error:
    print(type(error).__name__)
client = app.connection_for_read().default_channel.client
print(sum(client.llen(key) for key in client.scan_iter(_type="list") if b"sign" not in key))
""")
    assert shop.run(code) == shop.run(f"app.control.purge()\n{code}", stock=True) == "EncodeError\n7"


def test_the_tasks_of_a_slow_generator_leave_as_they_come(shop: Project) -> None:
    shop.worker()
    code = """
from celery import group
def slowly():
    for number in range(4):
        yield write.s(str(number))
        if number > 1:  # Celery reads two tasks ahead.
            deadline = time.monotonic() + 30
            while str(number - 2) not in open(os.environ["SHOP_LEDGER"]).read() and time.monotonic() < deadline:
                time.sleep(0.02)
            print(time.monotonic() < deadline, end=" ")
group(slowly()).apply_async()
"""
    assert shop.run(f"import os\n{code}") == "True True"


def test_who_listens_to_publishing_sees_each_message_before_it_leaves(shop: Project) -> None:
    code = CALLS.format("""
from celery.signals import before_task_publish
client = app.connection_for_read().default_channel.client
waiting = []
@before_task_publish.connect
def note(**_):
    waiting.append(sum(client.llen(key) for key in client.scan_iter(_type="list") if b"sign" not in key))
group(at_once.s(str(number)) for number in range(4)).apply_async()
print(waiting)
""")
    assert shop.run(code) == "[0, 1, 2, 3]"


class _Relay:
    """Forwards to Redis, and breaks one connection: where a reply to the first batch of messages would come back."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.broken = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                there = socket.create_connection(self._target)
                is_cut = threading.Event()
                threading.Thread(target=self._forward, args=(client, there, self._watch, is_cut), daemon=True).start()
                threading.Thread(target=self._forward, args=(there, client, self._cut, is_cut), daemon=True).start()

    def _watch(self, request: bytes, is_cut: threading.Event) -> None:
        if not self.broken and b"graft:sent:" in request:
            self.broken += 1
            is_cut.set()

    def _cut(self, reply: bytes, is_cut: threading.Event) -> None:
        if is_cut.is_set():
            raise ConnectionResetError

    def _forward(
        self, source: socket.socket, target: socket.socket, look: Callable[..., None], is_cut: threading.Event
    ) -> None:
        with source, target, suppress(OSError):
            while data := source.recv(1 << 16):
                look(data, is_cut)
                target.sendall(data)

    def close(self) -> None:
        self._server.close()


def test_messages_whose_arrival_is_uncertain_are_sent_again_and_taken_once(shop: Project, server: Stack) -> None:
    port = urlsplit(server.redis_url).port
    assert port is not None
    relay = _Relay(port)
    code = "from celery import group\ngroup([write.s(str(number)) for number in range(40)]).apply_async()"
    shop.run(f"{code}\napp.control.purge()")  # Redis knows the script from now on.
    try:
        shop.run(code, SHOP_REDIS=server.redis_url.replace(str(port), str(relay.port)))
    finally:
        relay.close()
    assert relay.broken == 1
    shop.worker()
    shop.run("write.s('last').set(priority=9).apply_async().get(timeout=60)")
    wait_until(lambda: len(shop.lines()) == 41, 30, "the tasks to run")
    assert shop.lines() == Counter([*map(str, range(40)), "last"])
