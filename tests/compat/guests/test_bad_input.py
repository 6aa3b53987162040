"""What programs with pools do to themselves and to workers: each ends as it would have without us, or says why not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from tests.stack import wait_until

# `here` tells a guest from a process that this program has made itself.
WHERE = """
    import multiprocessing as mp, os, sys, threading
    from concurrent.futures import ProcessPoolExecutor
    def square(n):
        with open("at_home" if mp.parent_process().pid == os.getppid() else "moved", "a") as file:
            file.write("x")
        return n * n
    def use(kind, count=3):
        if kind == "pool":
            with mp.Pool(2) as pool:
                return pool.map(square, range(count))
        with ProcessPoolExecutor(2) as executor:
            return list(executor.map(square, range(count)))
"""
FORKS = """
    def tell(kind):
        print("in a process:", use(kind), flush=True)
    if __name__ == "__main__":
        pid = os.fork()
        if pid == 0:
            print("in a fork:", use("pool"), flush=True)
            sys.exit(3)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), use("executor"), flush=True)
        process = mp.Process(target=tell, args=("executor",))
        process.start()
        process.join()
        with mp.Pool(2) as pool:
            print(pool.map(square, [7]), flush=True)
            pid = os.fork()
            if pid == 0:
                print("in a fork after a pool:", use("pool"), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
            print(pool.map(square, [8]))
"""
THREADS = """
    if __name__ == "__main__":
        found = {}
        def run(count):
            found[count] = use(("pool", "executor")[count % 2], count)
        threads = [threading.Thread(target=run, args=(count,)) for count in range(1, 5)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(sorted(found.items()))
"""


@pytest.mark.parametrize(("name", "body", "calls"), [("forks", FORKS, 14), ("threads", THREADS, 10)])
def test_pools_of_forked_processes_and_of_threads_move(write, plain, moved, tmp_path, name, body, calls):
    write("program.py", WHERE + body)
    at_home, ended = plain("program.py"), moved("program.py")
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert (tmp_path / "at_home").read_text() == (tmp_path / "moved").read_text() == calls * "x"


PATCHES = """
    import multiprocessing.pool as mp, sys
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.process import BaseProcess
    class OwnPool(mp.Pool):  # Of Stack Overflow.
        def Process(self, *args, **options):
            process = super().Process(*args, **options)
            class NoDaemon(type(process)):
                daemon = property(lambda self: False, lambda self, value: None)
            process.__class__ = NoDaemon
            return process
    def double(n): return 2 * n
    def nested(n):
        with mp.Pool(1) as pool:
            return pool.map(double, range(n))
    def traced(n): return n, hasattr(sys, "is_traced")
    def counted(self, *arguments, **options):
        sys.is_traced = True
        return bootstrap(self, *arguments, **options)
    if __name__ == "__main__":
        pool = OwnPool(2)
        print(pool.map(nested, [1, 2]))
        pool.terminate()
        bootstrap = BaseProcess._bootstrap
        BaseProcess._bootstrap = counted  # As coverage does.
        with ProcessPoolExecutor(1) as executor:
            print(executor.submit(traced, 1).result())
        BaseProcess._bootstrap = bootstrap
        sys.modules["multiprocessing"].Pool = mp.Pool = OwnPool
        from multiprocessing import Pool
        pool = Pool(1)
        print(type(pool).__name__, pool.map(nested, [3]))
        pool.terminate()
        with ProcessPoolExecutor(1) as executor:
            print(executor.submit(double, 1).result())
"""


def test_a_program_that_changes_multiprocessing_itself_gets_what_it_made_of_it(write, plain, moved):
    write("program.py", PATCHES)
    at_home, ended = plain("program.py"), moved("program.py")
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert "its class OwnPool has a method Process of its own" in ended.reasons()
    assert "multiprocessing.process.BaseProcess._bootstrap has been replaced" in ended.reasons()
    assert [row["func"] for row in ended.calls if row["where"] == "cluster"] == ["__main__:double"]


PRICED = """
    import sys, time
    from concurrent.futures import ProcessPoolExecutor
    from pathlib import Path
    import prices
    def price(n):
        Path(f"began{n}").touch()
        while not Path("../go").exists():
            time.sleep(0.01)
        return n, prices.price(n)
    if __name__ == "__main__":
        with ProcessPoolExecutor(1) as executor:
            print(list(executor.map(price, range(2))))
"""


def test_two_programs_at_once_have_their_own_version_of_a_module(write, stack, tmp_path):
    programs = []
    for version in (1, 2):
        (tmp_path / f"v{version}").mkdir()
        write(f"v{version}/prices.py", f"def price(n): return 'version {version}'\n")
        write(f"v{version}/program.py", PRICED)
        programs.append(subprocess.Popen(
            [sys.executable, "-m", "graft.compat", "--pools=single", "--report", "report.txt", "program.py"],
            stdout=subprocess.PIPE, text=True, cwd=tmp_path / f"v{version}",
        ))  # fmt: skip
    wait_until(lambda: len(list(tmp_path.glob("v*/began0"))) == 2, what="a call of each runs")
    (tmp_path / "go").touch()
    for version, program in enumerate(programs, 1):
        expected = [(n, f"version {version}") for n in range(2)]
        assert program.communicate(timeout=60) == (f"{expected}\n", None)
        assert "2 in the cluster" in (tmp_path / f"v{version}" / "report.txt").read_text()


MOVED_AWAY = """
    import multiprocessing as mp, os
    from concurrent.futures import ProcessPoolExecutor
    if __name__ == "__main__":
        before, after = os.getcwd(), os.getcwd() + ".moved"
        with ProcessPoolExecutor(2, mp.get_context("spawn"), max_tasks_per_child=1) as executor:
            print(executor.submit(abs, -1).result(timeout=60))
            os.rename(before, after)
            ended = [executor.submit(abs, -1) for _ in range(4)]
            print([str(call.exception(timeout=60) or call.result()) for call in ended])
        os.rename(after, before)
"""


def test_a_worker_that_lacks_the_folder_when_another_guest_is_made_fails_that_call_by_name(write, moved, tmp_path):
    (tmp_path / "shop").mkdir()
    write("shop/program.py", MOVED_AWAY)
    os.chdir(tmp_path / "shop")
    ended = moved("program.py")
    first, rest = ended.out.splitlines()
    assert (ended.code, first) == (0, "1"), ended.err
    refusal = f"has no folder {tmp_path / 'shop'}, in which the program runs; share it"
    assert all(text == "1" or refusal in text for text in ast.literal_eval(rest))
    assert refusal in rest
