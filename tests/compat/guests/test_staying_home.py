"""Pools that stay on this machine, and the reasons that the report gives."""

from __future__ import annotations

import pytest


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


def test_a_pool_made_while_its_module_is_imported_stays_at_home(write, plain, moved):
    write("shop.py", """
        from multiprocessing import Pool
        with Pool(2) as pool:
            PRICES = pool.map(abs, range(-3, 0))
    """)  # fmt: skip
    write("program.py", "import shop\nprint(shop.PRICES)\n")
    at_home, ended = plain("program.py"), moved("program.py")
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert "it is made while shop is imported" in ended.reasons()


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


@pytest.mark.parametrize(
    ("pretence", "reason"),
    [
        ("os.getcwd = lambda: '/srv/shop'", "has no folder /srv/shop, in which the program runs; share it"),
        (
            "sys.version_info, sys.executable = (3, 9, 1), '/nowhere/python'",
            "the program runs Python 3.9, and the worker on",
        ),
    ],
)
def test_a_folder_or_a_python_that_a_worker_lacks_keeps_the_pool_at_home(write, moved, pretence, reason):
    write("program.py", f"""
        import os, sys
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            {pretence}  # What another machine, or another Python, would have said.
            with ProcessPoolExecutor(1) as executor:
                print(executor.submit(abs, -1).result())
    """)  # fmt: skip
    ended = moved("program.py")
    assert (ended.code, ended.out) == (0, "1\n")
    assert reason in ended.reasons()


SINGLE = """
    import multiprocessing as mp
    from concurrent.futures import ProcessPoolExecutor
    def load(value):
        global model
        model = value
    def ask(n):
        return model + n
    if __name__ == "__main__":
        with ProcessPoolExecutor(1) as executor:
            executor.submit(load, 40).result()
            print([executor.submit(ask, n).result() for n in range(8)])
        with mp.Pool(1) as pool:
            pool.apply(load, (50,))
            print([pool.apply(ask, (n,)) for n in range(8)])
"""


def test_calls_of_a_pool_of_one_process_find_what_earlier_ones_left_there(write, plain, stack):
    write("program.py", SINGLE)
    ended = plain("-m", "graft.compat", "--pools", "program.py")
    assert (ended.code, ended.out) == (0, f"{[*range(40, 48)]}\n{[*range(50, 58)]}\n"), ended.err
    assert "it has one process, in which a call may use what an earlier one left" in " ".join(ended.err.split())
