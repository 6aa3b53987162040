"""joblib's default backend: its calls, and the large arrays that they map."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.stack import wait_until


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


ARRAYS = """
    import os
    import numpy as np
    from joblib import Parallel, delayed
    def describe(array, n):
        return type(array).__name__, array.flags.writeable, array.shape, float(array[n])
    def overwrite(array, n):
        array[n] = n + 1
    def part(array):
        return array[:3], np.asarray(array)[:2]
    if __name__ == "__main__":
        large = np.arange(2_000_000, dtype=float)
        with Parallel(n_jobs=2) as parallel:
            print(parallel(delayed(describe)(large, n) for n in range(6)))
            print(parallel(delayed(part)(large) for _ in range(2)))
            try:
                parallel(delayed(overwrite)(large, 0) for _ in range(1))
            except ValueError as error:
                print(error)
        filled = np.memmap("filled", dtype=float, shape=(200_000,), mode="w+")
        Parallel(n_jobs=2)(delayed(overwrite)(filled, n) for n in range(4))
        print(filled[:5])
        filled.flush()
        read = np.memmap("filled", dtype=float, mode="r")
        print(Parallel(n_jobs=2)(delayed(describe)(read[1:], n) for n in range(3)))
"""
# The program sees another /dev/shm than the workers, as if it ran on another machine.
FAR = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh")


@pytest.mark.parametrize("where", ["near", "far"])
def test_processes_map_large_arrays_which_reach_another_machine_once(write, plain, moved, redis, where):
    pytest.importorskip("numpy")
    write("program.py", ARRAYS)
    at_home = plain("program.py")
    if where == "far" and subprocess.run([*FAR, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine grants no namespaces")
    before, folders = redis.info("stats")["total_net_input_bytes"], list(Path("/dev/shm").glob("joblib*"))
    ended = moved("program.py", prefix=FAR if where == "far" else ())
    assert (ended.code, ended.out) == (at_home.code, at_home.out), ended.err
    assert ended.where() == {"cluster"}, ended.reasons()
    sent = redis.info("stats")["total_net_input_bytes"] - before
    # 16 MB twice, as joblib writes an array anew for a pool that an error has ended; and 1.6 MB of the read one.
    assert sent < 2e6 if where == "near" else 16e6 < sent < 37e6
    assert not [*redis.scan_iter("graft:guests:*:part:*")]
    wait_until(lambda: list(Path("/dev/shm").glob("joblib*")) == folders, what="copies are gone with their pools")
