"""Proxies of a manager: they work in guests on the same machine, and a worker on another one keeps the pool at home."""

from __future__ import annotations

import time

import redis

from graft.config.queues import table
from graft.tasks.monitoring import worker_registry
from graft.tasks.monitoring.worker_registry import WorkerBeat

PROGRAM = """
    import multiprocessing as mp
    from concurrent.futures import ProcessPoolExecutor
    def keep(queue, lock):
        global kept
        kept = queue, lock
    def send(n):
        queue, lock = kept
        with lock:
            queue.put(n)
    def add(shared, n):
        shared[n] = n * n
    if __name__ == "__main__":
        mp.current_process().authkey = b"of this program alone"
        with mp.Manager() as manager:
            queue, shared = manager.Queue(), manager.dict()
            with mp.Pool(2, keep, (queue, manager.Lock())) as pool:
                pool.map(send, range(4), 1)
            print(sorted(queue.get() for _ in range(4)))
            with ProcessPoolExecutor(2, mp.get_context("spawn")) as executor:
                list(executor.map(add, 3 * [shared], range(3)))
            print(sorted(shared.items()))
"""


def test_proxies_work_in_guests_unless_a_worker_is_on_another_machine(write, plain, moved, redis: redis.Redis):
    write("program.py", PROGRAM)
    at_home, ended = plain("program.py"), moved("program.py")
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert ended.where() == {"cluster"}, ended.reasons()
    elsewhere = WorkerBeat("cpu@far", 1, "prefork", [table().batch], 1, 0, 0, 0, time.time(), host="far.example")
    worker_registry.beat(elsewhere, redis)
    try:
        ended = moved("program.py")
    finally:
        worker_registry.remove(elsewhere.name, redis)
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert ended.where() == {"local"}
    assert ended.reasons().count("whose proxies reach no other machine") == 2
    assert f"a worker of the queue {table().batch} runs on far.example" in ended.reasons()
