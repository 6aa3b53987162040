"""Unchanged programs with process pools: what they print, how they end, and what is left, with and without us."""

from __future__ import annotations

SETTINGS = """
    import logging
    LIMIT = None
    HANDLERS = []
    class Config:
        debug = False
    def seen(n):
        return n, LIMIT, Config.debug, HANDLERS
"""
PLUGIN = """
    import settings
    settings.HANDLERS.append("plugin")
"""
EXECUTOR = """
    import logging, multiprocessing, os, subprocess, sys, warnings
    from concurrent.futures import ProcessPoolExecutor
    import plugin, settings

    options = None
    DEFAULT = settings.seen(0)

    class Point:
        def __init__(self, x): self.x = x
        def __eq__(self, other): return type(other) is Point and other.x == self.x
        def __repr__(self): return f"Point({self.x})"
        def __hash__(self): return hash(self.x)
        def scaled(self, by): return Point(self.x * by)

    def work(n, default=DEFAULT):
        print("print", n)
        sys.stderr.write(f"stderr {n}\\n")
        sys.stdout.buffer.write(b"buffer\\n")
        logging.getLogger("app").info("logged %d", n)
        logging.getLogger("app").debug("not logged")
        warnings.warn("warned")
        subprocess.run(["echo", "echoed"])
        os.write(1, b"written\\n")
        umask = os.umask(0); os.umask(umask)
        process = multiprocessing.current_process()
        return (options, settings.seen(n), os.environ["SET"], os.getcwd(), sys.argv, umask, hash("a"), Point(n),
                process.name, process.daemon, multiprocessing.parent_process().name, sys.getrecursionlimit(), default)

    def raises(n):
        raise LookupError(n)

    if __name__ == "__main__":
        options, settings.LIMIT, settings.Config.debug = {"level": 3}, 7, True
        os.environ["SET"] = "yes"
        os.umask(0o027)
        sys.setrecursionlimit(1234)
        logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
        warnings.simplefilter("always")
        parent = os.getpid()
        def below(n):
            return n, multiprocessing.parent_process().pid == os.getppid()
        with ProcessPoolExecutor(1) as executor:
            for n in range(2):
                print(*executor.submit(work, n).result())
            print(list(executor.map(Point(2).scaled, [1, 2])), executor._max_workers)
            print(executor.submit(below, 1).result()[0], len(executor.submit(bytes, 9_000_000).result()))
            print([hash(Point(n)) for n in executor.map(Point, range(3))])
            try:
                executor.submit(raises, 5).result()
            except LookupError as error:
                print(error, type(error.__cause__).__name__, "line" in str(error.__cause__))
            try:
                executor.submit(lambda: 1).result()
            except Exception as error:
                print(type(error).__name__)
        raise SystemExit(executor._broken or 3)
"""
POOL = """
    import multiprocessing as mp, sys, time

    def square(x): return x * x
    def add(a, b=1): return a + b
    def raises(x): raise KeyError(x)
    def remember(value):
        global held
        held = value
    def read(_): return held
    def put(shared, key): shared[key] = key

    def numbers():
        yield 1
        raise RuntimeError("input")

    with mp.Pool(2) as pool:  # Without a main guard: a fork needs none.
        print(pool, pool._processes, len(pool._pool), pool._pool[0].name)
        print(pool.map(square, range(10)), pool.starmap(add, [(1, 2), (3, 4)]), pool.apply(add, (1,), {"b": 5}))
        print(list(pool.imap(square, range(5))), sorted(pool.imap_unordered(square, range(5), 2)))
        for call in (pool.apply, pool.map, lambda *given: list(pool.imap(*given))):
            try:
                call(raises, [1])
            except KeyError as error:
                print(repr(error), type(error.__cause__).__name__)
        values = pool.imap(square, numbers())
        print(next(values))
        try:
            next(values)
        except RuntimeError as error:
            print(error)
        print(pool.apply_async(square, (3,), callback=lambda value: print("called back", value)).get())
    with mp.get_context("fork").Pool(1, remember, (9,)) as pool:
        print(pool.map(read, [1, 2]))
    pool = mp.Pool(2, maxtasksperchild=1)
    print(pool.map(square, [1, 2, 3], chunksize=1))
    pool.close()
    pool.join()
    with mp.Manager() as manager:
        shared = manager.dict()
        with mp.Pool(2) as pool:
            pool.starmap(put, [(shared, "a"), (shared, "b")])
        print(sorted(shared.items()))
"""


ENDS = """
    import os, sys
    from concurrent.futures import ProcessPoolExecutor
    def end(n):
        with open("runs", "a") as file:
            file.write("x")
        os._exit(3)
    if __name__ == "__main__":
        with ProcessPoolExecutor(2) as executor:
            print(repr(executor.submit(end, 1).exception()))
            try:
                executor.submit(end, 2)
            except Exception as error:
                print(type(error).__name__)
"""


def test_a_program_with_an_executor_is_the_same_on_workers(write, plain, moved):
    write("settings.py", SETTINGS)
    write("plugin.py", PLUGIN)
    write("program.py", EXECUTOR)
    at_home, ended = plain("program.py", "--option"), moved("program.py", "--option")
    assert (ended.code, sorted(ended.out.splitlines())) == (at_home.code, sorted(at_home.out.splitlines()))
    assert (ended.out, ended.err) == (at_home.out, at_home.err)
    assert ended.where() == {"cluster"}, ended.reasons()


def test_a_program_with_pools_is_the_same_on_workers(write, plain, moved):
    write("program.py", POOL)
    at_home, ended = plain("program.py"), moved("program.py")
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert ended.where() == {"cluster"}, ended.reasons()


def test_a_process_class_of_the_program_is_that_of_its_guests(write, plain, moved):
    write("program.py", """
        import multiprocessing as mp
        from multiprocessing.pool import Pool
        class NoDaemonProcess(mp.Process):  # So that its calls may have pools of their own.
            @property
            def daemon(self): return False
            @daemon.setter
            def daemon(self, value): pass
            def run(self):
                self.noted = "run by its own class"
                super().run()
        class NoDaemonContext(type(mp.get_context("fork"))):
            Process = NoDaemonProcess
        def double(n): return 2 * n
        def nested(n):
            process = mp.current_process()
            with mp.Pool(2) as pool:
                return process.noted, process.daemon, type(process).__name__, pool.map(double, range(n))
        if __name__ == "__main__":
            with Pool(2, context=NoDaemonContext()) as pool:
                print(pool.map(nested, [2, 3]))
            class LocalProcess(NoDaemonProcess):
                __qualname__ = "somewhere.LocalProcess"
            NoDaemonContext.Process = LocalProcess
            with Pool(1, context=NoDaemonContext()) as pool:
                print(pool.map(nested, [1]))
    """)  # fmt: skip
    at_home, ended = plain("program.py"), moved("program.py")
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert [row["items"] for row in ended.calls if row["where"] == "cluster"] == [2]
    assert "its process class can only be inherited" in ended.reasons()


def test_workers_with_the_pool_direct_serve_programs_and_outlive_a_call_that_ends_its_process(
    write, plain, on_workers, fresh_stack, monkeypatch
):
    for name, value in fresh_stack(GRAFT_POOL="direct").variables.items():
        monkeypatch.setenv(name, value)
    write("ends.py", ENDS)
    write("program.py", POOL)
    for program in ("ends.py", "program.py"):
        at_home, ended = plain(program), on_workers(program)
        assert (ended.code, ended.out) == (at_home.code, at_home.out), ended.err
        assert ended.where() == {"cluster"}, ended.reasons()


def test_nothing_of_one_run_is_left_for_the_next(write, moved):
    write("counted.py", "seen = []\ndef count(n):\n    seen.append(n)\n    return len(seen), 'old'\n")
    write("program.py", """
        from concurrent.futures import ProcessPoolExecutor
        from counted import count
        if __name__ == "__main__":
            with ProcessPoolExecutor(1) as executor:
                print(executor.submit(count, 1).result())
    """)  # fmt: skip
    assert moved("program.py").out == "(1, 'old')\n"
    write("counted.py", "seen = []\ndef count(n):\n    seen.append(n)\n    return len(seen), 'edited'\n")
    assert moved("program.py").out == "(1, 'edited')\n"


def test_a_call_that_ends_its_process_breaks_the_executor_and_runs_once(write, plain, moved, tmp_path):
    write("program.py", ENDS)
    at_home = plain("program.py")
    assert moved("program.py").out == at_home.out
    assert (tmp_path / "runs").read_text() == "xx"  # Once at home, and once on a worker.


def test_what_is_pickled_for_guests_alone_warns_of_nothing(write, plain, moved):
    write("noisy.py", """
        import warnings
        class Noisy:
            def __reduce__(self):
                warnings.warn("of dill, say")
                return Noisy, ()
        held = None
    """)  # fmt: skip
    write("program.py", """
        import multiprocessing as mp
        import noisy
        def find(n):
            return type(noisy.held).__name__, n
        if __name__ == "__main__":
            noisy.held = noisy.Noisy()
            with mp.Pool(2) as pool:
                print(pool.map(find, range(3)))
    """)  # fmt: skip
    at_home, ended = plain("program.py"), moved("program.py")
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert ended.where() == {"cluster"}, ended.reasons()
