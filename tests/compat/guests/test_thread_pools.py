"""Thread pools of the program, with ``--pools=processes,threads``."""

from __future__ import annotations

THREADS = """
    import asyncio, os, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    import helper
    from helper import pure, through
    seen, LIMIT, held = [], 3, threading.local()
    def work(n):
        sys.stdout.write(f"working on {n}\\n")  # At once: threads write into each other's lines.
        return n * LIMIT, threading.current_thread().name == "MainThread" and os.getpid()
    def note(n):
        seen.append(n)
    def fail(n):
        raise LookupError(n)
    class Counter:
        n = 0
        def add(self, by):
            self.n += by
    async def main():
        with ThreadPoolExecutor(2) as executor:
            loop = asyncio.get_running_loop()
            print(await asyncio.gather(*(loop.run_in_executor(executor, pure, n) for n in range(3))))
            print(await asyncio.to_thread(pure, 5), await loop.run_in_executor(None, pure, 6))
    if __name__ == "__main__":
        with ThreadPoolExecutor(2) as executor:
            print([n for n, _ in executor.map(work, range(4))])
            list(executor.map(note, range(3)))
            print(sorted(seen), repr(executor.submit(fail, 1).exception()), executor.submit(max, [1, 2]).result())
            counter, values = Counter(), []
            executor.submit(counter.add, 3).result()
            executor.submit(values.append, 1).result()
            executor.submit(helper.fill, values).result()
            print(counter.n, values, executor.submit(pure, 1).result(), executor.submit(through, 2).result())
            print(helper.CACHE, executor.submit(lambda: 4).result())
        with ThreadPoolExecutor(1, initializer=lambda: setattr(held, "value", 9)) as executor:
            print(executor.submit(pure, 1).result())
        asyncio.run(main())
        left = ThreadPoolExecutor(1)
        for n in range(3):
            left.submit(work, n)
        sys.stdout.write("end\\n")
"""
HELPER = """
    CACHE = {}
    def cached(n):
        CACHE[n] = n
        return n
    def pure(n):
        return n + 1
    def through(n):
        return cached(n)
    def fill(values):
        values.append(2)
"""


def test_threads_move_only_when_asked_and_only_calls_that_share_nothing(write, plain, moved):
    write("helper.py", HELPER)
    write("program.py", THREADS)
    at_home = plain("program.py")
    assert at_home.code == 0, at_home.err
    assert moved("program.py").calls == []
    ended = moved("--pools=processes,threads", "program.py")
    assert (ended.code, sorted(ended.out.splitlines())) == (at_home.code, sorted(at_home.out.splitlines())), ended.err
    where = {(row["func"], row["where"]): row["calls"] for row in ended.calls}
    assert where == {
        ("__main__:work", "cluster"): 3, ("__main__:fail", "cluster"): 1, ("helper:pure", "cluster"): 3,
        ("__main__:note", "local"): 3, ("builtins:max", "local"): 1, ("__main__:Counter.add", "local"): 1,
        ("builtins:list.append", "local"): 1, ("helper:fill", "local"): 1, ("helper:through", "local"): 1,
        ("__main__:<lambda>", "local"): 1, ("helper:pure", "local"): 1,
    }  # fmt: skip
    assert "helper:through calls helper:cached, which captures 'CACHE' (dict)" in ended.reasons()
    assert "its argument 1 (list) could be changed by the call" in ended.reasons()
