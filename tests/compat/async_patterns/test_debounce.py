"""D.9: debounce and throttle."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from graft.compat.async_patterns import Stream, channel, debounce, throttle
from tests.stack import wait_until


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


@pytest.fixture(params=["local", pytest.param("cluster", marks=pytest.mark.redis)])
def name(request):
    if request.param == "local":
        return None
    request.getfixturevalue("redis_stack")
    return f"test {uuid4()}"


async def feed(sender, events, period):
    async with sender:
        for event in events:
            await sender.send(event)
            await asyncio.sleep(period)


class Handled:
    def __init__(self):
        self.events = []
        self.times = []

    async def __call__(self, event):
        self.events.append(event)
        self.times.append(time.monotonic())


def test_only_the_last_of_a_burst_is_handled(name):
    handled = Handled()

    async def main():
        sender, receiver = channel(32)
        began = time.monotonic()
        await asyncio.gather(
            feed(sender, [f"event_{n}" for n in range(10)], 0.05), debounce(receiver, 1.0, handled, name=name)
        )
        assert handled.events == ["event_9"]
        assert handled.times[0] - began >= 0.45 + 1.0 - 0.02

    run(main())


def test_events_apart_are_each_handled(name):
    handled = Handled()

    async def main():
        sender, receiver = channel(32)
        debouncing = asyncio.ensure_future(debounce(receiver, 0.05, handled, name=name))
        for event in (1, 2):
            await sender.send(event)
            await asyncio.to_thread(wait_until, lambda event=event: event in handled.events)
        sender.close()
        await debouncing
        assert handled.events == [1, 2]

    run(main())


def test_a_throttle_handles_the_first_then_the_latest_of_each_interval(name):
    handled = Handled()

    async def main():
        sender, receiver = channel(32)
        await asyncio.gather(
            feed(sender, [f"e{n}" for n in range(10)], 0.06), throttle(receiver, 0.2, handled, name=name)
        )
        assert handled.events[0] == "e0"
        assert handled.events[-1] == "e9"
        assert handled.events == sorted(set(handled.events))
        assert len(handled.events) >= 2
        gaps = [after - before for before, after in zip(handled.times, handled.times[1:], strict=False)]
        assert min(gaps) >= 0.18

    run(main())


def test_two_receivers_of_one_name_handle_an_event_between_them(redis_stack):
    name = str(uuid4())
    handled = Handled()

    async def main():
        await asyncio.gather(
            *(debounce(Stream([f"{source}{n}" for n in range(3)]), 0.3, handled, name=name) for source in "ab")
        )
        assert len(handled.events) == 1
        assert handled.events[0] in ("a2", "b2")

    run(main())


def test_no_events_end_at_once_and_the_wrong_figures_are_refused():
    handled = Handled()
    run(debounce(Stream([]), 60, handled))
    run(throttle(Stream([]), 60, handled))
    assert handled.events == []
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="more than 0"):
            run(debounce(Stream([]), wrong, handled))


def test_an_error_of_the_handler_rises_and_leaves_nothing_running():
    async def main():
        sender, receiver = channel(4)
        await sender.send(1)

        def fail(event):
            raise ValueError(event)

        with pytest.raises(ValueError, match="1"):
            await throttle(receiver, 0.1, fail)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
