"""``--pools`` with ``--shadow`` and ``--canary``: who answers, what is compared, and a cluster that is late."""

from __future__ import annotations

import json
import re

import pytest

WORD = re.compile(r"squaring|[^\s\d]+|\d")  # The pool's processes write into each other's lines.
PROGRAM = """
    import multiprocessing as mp, os
    from concurrent.futures import ProcessPoolExecutor
    PARENT = os.getpid()
    def square(n):
        print("squaring", n)
        return n * n
    def is_at_home(n):
        return os.getppid() == PARENT
    def fail(n):
        raise LookupError(n)
    if __name__ == "__main__":
        with ProcessPoolExecutor(2) as executor:
            print(list(executor.map(square, range(4))), set(executor.map(is_at_home, range(3))))
            error = executor.submit(fail, 1).exception()
            print(repr(error), type(error.__cause__).__name__, "in fail" in str(error.__cause__))
        with mp.Pool(2) as pool:
            print(pool.map(square, range(9), chunksize=4), set(pool.map(is_at_home, range(2))))
            print(list(pool.imap(square, range(3))), pool.apply_async(square, (5,)).get())
            try:
                pool.apply(fail, (2,))
            except LookupError as error:
                print(repr(error), type(error.__cause__).__name__)
"""


@pytest.fixture
def judged(moved, tmp_path):
    def run(*arguments):
        verdict = tmp_path / "verdict.json"
        ended = moved(*arguments, "--verdict", str(verdict), "program.py")
        return ended, {each["callable"]: each for each in json.loads(verdict.read_text())["callables"]}

    return run


def test_under_shadow_the_pools_own_processes_answer_and_the_cluster_is_compared_in_silence(write, plain, judged):
    write("program.py", PROGRAM)
    at_home = plain("program.py")
    ended, verdicts = judged("--shadow", "1")
    assert (ended.code, sorted(WORD.findall(ended.out))) == (at_home.code, sorted(WORD.findall(at_home.out))), ended.err
    assert verdicts["__main__:square"]["verdict"] == "safe", ended.err
    assert verdicts["__main__:square"]["compared"] == 4 + 3 + 3 + 1
    assert verdicts["__main__:fail"]["verdict"] == "safe"
    differs = verdicts["__main__:is_at_home"]
    assert (differs["verdict"], differs["differ"]) == ("differs", 3 + 2)
    assert [(one["old"], one["cluster"]) for one in differs["examples"]] == [("[True]", "[False]")]


def test_under_canary_the_cluster_answers_through_the_pool(write, plain, judged):
    write("program.py", PROGRAM)
    at_home = plain("program.py")
    ended, verdicts = judged("--canary", "1")
    expected = at_home.out.replace("{True}", "{False}")
    assert (ended.code, sorted(WORD.findall(ended.out))) == (0, sorted(WORD.findall(expected))), ended.err
    assert verdicts["__main__:square"]["canaries"] == 4 + 3 + 3 + 1
    assert (verdicts["__main__:fail"]["canaries"], verdicts["__main__:fail"]["canary_errors"]) == (2, 2)
    assert {each["taken_back"] for each in verdicts.values()} == {0}


def test_the_pools_own_processes_answer_what_the_cluster_does_not_and_the_program_ends(write, plain, stack):
    write("program.py", """
        import multiprocessing as mp, os, time
        from concurrent.futures import ProcessPoolExecutor
        from graft.compat import redirect, shadow
        PARENT = os.getpid()
        def work(n):
            if os.getppid() != PARENT:
                time.sleep(600)
            return n
        if __name__ == "__main__":
            shadow.install(canary=1.0, timeout=1.0, program="taken_back")
            redirect.install(pools=True)
            with ProcessPoolExecutor(2) as executor:
                print(list(executor.map(work, range(3))))
            with mp.Pool(2) as pool:
                print(pool.map(work, range(6), chunksize=2))
                print(list(pool.imap(work, range(2))))
            print(sorted((one.callable, one.taken_back) for one in shadow.verdict().callables))
    """)  # fmt: skip
    ended = plain("program.py")
    assert ended.out.splitlines() == [
        "[0, 1, 2]", "[0, 1, 2, 3, 4, 5]", "[0, 1]", "[('__main__:work', 6)]",
    ], ended.err  # fmt: skip


JOBLIB = """
    import os
    from joblib import Parallel, delayed
    PARENT = os.getpid()
    def is_at_home(n):
        return os.getppid() == PARENT
    def fail(n):
        raise LookupError(n)
    if __name__ == "__main__":
        factor = 3
        for _ in range(2):  # On the same processes of loky.
            print(Parallel(n_jobs=2)(delayed(lambda n: n * factor)(n) for n in range(4)))
        print(set(Parallel(n_jobs=2)(delayed(is_at_home)(n) for n in range(3))))
        try:
            Parallel(n_jobs=2)(delayed(fail)(n) for n in range(1))
        except LookupError as error:
            print(repr(error))
"""
PATHOS = """
    import os
    from multiprocess import Pool
    PARENT = os.getpid()
    def is_at_home(n):
        return os.getppid() == PARENT
    def fail(n):
        raise LookupError(n)
    if __name__ == "__main__":
        factor = 3
        with Pool(2) as pool:
            print(pool.map(lambda n: n * factor, range(8), 1))
            print(set(pool.map(is_at_home, range(3), 1)))
            try:
                pool.apply(fail, (0,))
            except LookupError as error:
                print(repr(error))
"""


@pytest.mark.parametrize(("package", "source"), [("joblib", JOBLIB), ("multiprocess", PATHOS)])
def test_the_calls_of_packages_with_pools_of_their_own_are_compared_and_answered_too(
    write, plain, judged, package, source
):
    pytest.importorskip(package)
    write("program.py", source)
    at_home = plain("program.py")
    shadowed, verdicts = judged("--shadow", "1")
    assert (shadowed.code, shadowed.out) == (at_home.code, at_home.out), shadowed.err
    found = {
        name.rpartition(".")[2].rpartition(":")[2]: (one["verdict"], one["compared"]) for name, one in verdicts.items()
    }
    assert found == {"<lambda>": ("safe", 8), "is_at_home": ("differs", 3), "fail": ("safe", 1)}
    canary, verdicts = judged("--canary", "1")
    assert (canary.code, canary.out) == (at_home.code, at_home.out.replace("{True}", "{False}")), canary.err
    assert {each["canaries"] for each in verdicts.values()} == {8, 3, 1}
    assert {each["taken_back"] for each in verdicts.values()} == {0}
