"""Other task queues that are asyncio programs: taskiq and arq."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from graft.scripts.bench.contenders.base import ContenderSetup, Starter
from graft.scripts.bench.contenders.peers import APPS, LOOK, Peer, program

T = TypeVar("T")


class AsyncPeer(Peer):
    """The client of an async queue, with one loop for as long as it is open."""

    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.connect())

    def close(self) -> None:
        self.loop.run_until_complete(self.disconnect())
        self.loop.close()

    async def connect(self) -> None:
        raise NotImplementedError

    async def disconnect(self) -> None:
        raise NotImplementedError

    async def send(self, function: str, item: Any) -> Any:
        """One call; something to be waited for."""
        raise NotImplementedError

    async def wait(self, handle: Any) -> Any:
        raise NotImplementedError

    def submit(self, function: str, item: Any) -> Any:
        return self.loop.run_until_complete(self.send(function, item))

    def gather(self, handles: Sequence[Any]) -> Sequence[Any]:
        return self.loop.run_until_complete(together(self.wait, handles))

    def singles(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        async def act() -> list[Any]:
            return await together(self.wait, await together(lambda item: self.send(function, item), items))

        return self.loop.run_until_complete(act())

    def one(self, function: str, item: Any) -> Any:
        async def act() -> Any:
            return await self.wait(await self.send(function, item))

        return self.loop.run_until_complete(act())

    def bounded(self, function: str, items: Sequence[Any], at_once: int) -> Sequence[Any]:
        async def act(item: Any) -> Any:
            return await self.wait(await self.send(function, item))

        return self.loop.run_until_complete(together(act, items, at_once))


async def together(act: Callable[[Any], Awaitable[T]], values: Sequence[Any], at_once: int = 100) -> list[T]:
    """``[await act(value) for value in values]`` with *at_once* under way."""
    found: dict[int, T] = {}
    left: Iterator[tuple[int, Any]] = iter(enumerate(values))

    async def hand() -> None:
        for index, value in left:
            found[index] = await act(value)

    await asyncio.gather(*(hand() for _ in range(min(at_once, len(values)))))
    return [found[index] for index in range(len(values))]


class Taskiq(AsyncPeer):
    name = "taskiq"
    title = "taskiq"
    needs = ("taskiq", "taskiq-redis")
    shapes = frozenset({"batch", "singles", "submit", "latency", "bounded"})

    def start(self, starter: Starter) -> None:
        argv = [program("taskiq"), "worker", f"{APPS}.taskiq_app:broker", "--workers", str(self.setup.concurrency)]
        starter.start([*argv, "--log-level", "WARNING", "--max-async-tasks", "1000"], self.environ)

    async def connect(self) -> None:
        from graft.scripts.bench.peers import taskiq_app

        self.broker, self.tasks = taskiq_app.broker, taskiq_app.TASKS
        await self.broker.startup()

    async def disconnect(self) -> None:
        await self.broker.shutdown()

    async def send(self, function: str, item: Any) -> Any:
        return await self.tasks[function].kiq(item)

    async def wait(self, handle: Any) -> Any:
        return (await handle.wait_result(check_interval=LOOK, timeout=600)).return_value


class TaskiqOne(Taskiq):
    """For comparisons of one process with one process."""

    name = "taskiq-1"
    title = "taskiq, one process"
    functions = frozenset({"nap", "anoop"})

    def __init__(self, setup: ContenderSetup) -> None:
        super().__init__(ContenderSetup(setup.redis_url, 1, setup.env))


class Arq(AsyncPeer):
    name = "arq"
    title = "arq, one process"
    needs = ("arq",)
    shapes = frozenset({"batch", "singles", "submit", "latency", "bounded"})
    functions = frozenset({"nap", "anoop"})

    def start(self, starter: Starter) -> None:
        starter.start([program("arq"), f"{APPS}.arq_app.WorkerSettings"], self.environ)

    async def connect(self) -> None:
        from arq import create_pool

        from graft.scripts.bench.peers import arq_app

        self.pool = await create_pool(arq_app.address())

    async def disconnect(self) -> None:
        await self.pool.close()

    async def send(self, function: str, item: Any) -> Any:
        return await self.pool.enqueue_job(function, item)

    async def wait(self, handle: Any) -> Any:
        from arq.jobs import ResultNotFound

        try:
            return await handle.result(timeout=600, poll_delay=LOOK)
        except ResultNotFound:  # It asks for the result, then for the job, which may have ended in between (0.25).
            return await handle.result(timeout=1, poll_delay=LOOK)
