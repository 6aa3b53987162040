"""What the report says of each pool: where its calls ran, how many, and what they took."""

from __future__ import annotations


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
