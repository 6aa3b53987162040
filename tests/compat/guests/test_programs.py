"""Unchanged programs with process pools: what they print, how they end, and what is left, with and without us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.stack import wait_until

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


def test_a_pool_that_only_inheritance_can_serve_stays_at_home_and_says_why(write, plain, moved):
    write("program.py", """
        import multiprocessing as mp, threading
        def remember(queue):
            global held
            held = queue
        def send(n):
            held.put(n)
        def locked(n):
            with lock:
                return n
        if __name__ == "__main__":
            queue = mp.Queue()
            with mp.Pool(2, remember, (queue,)) as pool:
                pool.map(send, range(3))
                print(sorted(queue.get() for _ in range(3)))
            lock = threading.Lock()
            lines = open(__file__)
            def first(n):
                return lines.readline()
            with mp.Pool(1) as pool:
                print(pool.map(first, range(1)))
    """)  # fmt: skip
    at_home, ended = plain("program.py"), moved("program.py")
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert (
        "its initializer or initargs can only be inherited (RuntimeError: Queue objects should only" in ended.reasons()
    )
    assert "__main__.lock was set before the pool was made, and cannot be pickled" in ended.reasons()


def test_the_report_names_each_function_of_each_pool_with_its_items_also_of_those_at_home(write, moved, tmp_path):
    write("program.py", """
        import multiprocessing as mp, threading, time
        from concurrent.futures import ProcessPoolExecutor
        from joblib import Parallel, delayed
        def double(n):
            return 2 * n
        def sleep(n):
            time.sleep(n)
        def fail(n):
            raise ValueError(n)
        def locked(n):
            with lock:
                return n
        if __name__ == "__main__":
            with ProcessPoolExecutor(2) as executor:
                list(executor.map(sleep, [0.2] * 4))
                list(executor.map(double, range(100), chunksize=25))
                print(repr(executor.submit(fail, 1).exception()))
            with mp.Pool(2) as pool:
                pool.map(double, range(10), chunksize=5)
                print(pool.apply_async(fail, (2,)).wait())
            Parallel(n_jobs=2, batch_size=3)(delayed(lambda n: n)(n) for n in range(6))
            lock = threading.Lock()
            with mp.Pool(2) as pool:
                pool.map(locked, range(6), chunksize=2)
            with ProcessPoolExecutor(2) as executor:
                list(executor.map(locked, range(9), chunksize=3))
                print(repr(executor.submit(fail, 1).exception()))
    """)  # fmt: skip
    ended = moved("--report-html", str(tmp_path / "report.html"), "program.py")
    rows = [
        (row["call"], row["func"], row["where"], row["calls"], row["items"], row["failures"]) for row in ended.calls
    ]
    assert rows == [
        ("ProcessPoolExecutor", "__main__:sleep", "cluster", 4, 4, 0),
        ("ProcessPoolExecutor", "__main__:double", "cluster", 4, 100, 0),
        ("ProcessPoolExecutor", "__main__:fail", "cluster", 1, 1, 1),
        ("multiprocessing.Pool", "__main__:double", "cluster", 2, 10, 0),
        ("multiprocessing.Pool", "__main__:fail", "cluster", 1, 1, 1),
        ("joblib.Parallel", "__main__:<genexpr>.<lambda>", "cluster", rows[5][3], 6, 0),
        ("multiprocessing.Pool", "__main__:locked", "local", 3, 6, 0),
        ("ProcessPoolExecutor", "__main__:locked", "local", 3, 9, 0),
        ("ProcessPoolExecutor", "__main__:fail", "local", 1, 1, 1),
    ], ended.err
    slept = ended.calls[0]
    assert slept["busy"] > 0.8
    assert 0.4 < slept["home"] < slept["busy"]
    assert slept["pool"] == {"made_at": "program.py:15", "processes": 2, "slots": 2}
    assert "made at program.py:15: <span class=cluster>in the cluster</span>" in (tmp_path / "report.html").read_text()


def test_joblibs_own_processes_are_in_the_report_too(write, moved, monkeypatch):
    monkeypatch.setenv("GRAFT_MODE", "local")
    write("program.py", """
        from joblib import Parallel, delayed
        if __name__ == "__main__":
            for _ in range(2):
                print(Parallel(n_jobs=2, batch_size=2)(delayed(abs)(-n) for n in range(4)))
    """)  # fmt: skip
    ended = moved("program.py")
    assert [(row["call"], row["func"], row["where"], row["items"]) for row in ended.calls] == [
        ("joblib.Parallel", "builtins:abs", "local", 8),
    ], ended.err  # fmt: skip
    assert "GRAFT_MODE is local" in ended.reasons()


THREADS = """
    import asyncio, os, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    import helper
    from helper import pure, through
    seen, LIMIT, held = [], 3, threading.local()
    def work(n):
        print("working on", n)
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
        print("end")
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


LONG = """
    import os, sys, time
    from concurrent.futures import ProcessPoolExecutor
    def write_late(n):
        open(f"began{n}", "w").close()
        time.sleep(40)
        open(f"ended{n}", "w").close()
    if __name__ == "__main__":
        print(os.getpid(), flush=True)
        with ProcessPoolExecutor(2) as executor:
            list(executor.map(write_late, range(2)))
"""


def test_after_ctrl_c_and_after_kill_nothing_goes_on(write, stack, tmp_path):
    write("program.py", LONG)
    began = [tmp_path / "began0", tmp_path / "began1"]
    for number in (signal.SIGINT, signal.SIGKILL):
        program = subprocess.Popen(
            [sys.executable, "-m", "graft.compat", "--pools", "--report", "report.txt", "program.py"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "GRAFT_GUEST_LEASE": "1"},
        )  # fmt: skip
        wait_until(lambda: all(path.exists() for path in began), what="both calls run")
        program.send_signal(number)
        program.communicate(timeout=30)
        assert program.returncode == -number
        wait_until(lambda: not _guests_in(tmp_path), timeout=20, what="the guests have ended")
        assert not list(tmp_path.glob("ended*"))
        for path in began:
            path.unlink()


def _guests_in(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"guest_process.py" in (process / "cmdline").read_bytes() and os.readlink(process / "cwd") == str(
                folder
            ):
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_folder_or_module_that_a_worker_lacks_is_refused_before_anything_runs(write, plain, moved, tmp_path):
    write("program.py", """
        import os, sys, types
        from importlib.machinery import ModuleSpec
        from concurrent.futures import ProcessPoolExecutor
        made = sys.modules["made_here"] = types.ModuleType("made_here")
        made.__spec__, made.__file__ = ModuleSpec("made_here", object()), "/nowhere/made_here.py"
        def work(n):
            return n
        if __name__ == "__main__":
            with ProcessPoolExecutor(1) as executor:
                print(executor.submit(work, 1).result())
    """)  # fmt: skip
    ended = moved("program.py")
    assert (ended.code, ended.out) == (0, "1\n")
    assert "a worker cannot import the program's module made_here" in ended.reasons()


def test_joblibs_default_backend_is_the_same_on_workers(write, plain, moved):
    write("program.py", """
        import os
        from joblib import Parallel, delayed
        def describe(n):
            print("working on", n)
            return n, os.environ["OMP_NUM_THREADS"], len(n * "x" if isinstance(n, int) else n)
        if __name__ == "__main__":
            factor = 3
            print(Parallel(n_jobs=1)(delayed(len)("x" * n) for n in range(3)))
            print(Parallel(n_jobs=2)(delayed(lambda n: n * factor)(n) for n in range(5)))
            print(Parallel(n_jobs=2)(delayed(describe)(n) for n in (3, "y" * 3_000_000))[0])
            print(list(Parallel(n_jobs=2, return_as="generator")(delayed(abs)(-n) for n in range(4))))
            try:
                Parallel(n_jobs=2)(delayed(int)(text) for text in ("1", "two"))
            except ValueError as error:
                print(error)
    """)  # fmt: skip
    at_home, ended = plain("program.py"), moved("program.py")
    assert ended.code == at_home.code == 0, ended.err
    assert sorted(ended.out.splitlines()) == sorted(at_home.out.splitlines())
    assert ended.where() == {"cluster"}, ended.reasons()
