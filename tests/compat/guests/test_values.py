"""Large values: what calls share is sent once, results come whole, and neither stays in Redis."""

from __future__ import annotations

import signal

import redis

from tests.stack import wait_until

LARGE = """
    import array
    from joblib import Parallel, delayed
    def total(values, n):
        return n, len(values), values[n], values[-1]
    def make(n):
        return array.array("d", [n]) * (2 << 20)
    if __name__ == "__main__":
        values = array.array("d", range(1000)) * 8389
        print(Parallel(n_jobs=2)(delayed(total)(values, n) for n in range(5)))
        for made in Parallel(n_jobs=2)(delayed(make)(n) for n in range(2)):
            print(len(made), made[0], made[-1])
"""


def test_a_64_mb_array_travels_once_and_16_mb_results_come_whole(write, plain, moved, redis: redis.Redis):
    write("program.py", LARGE)
    at_home, before = plain("program.py"), redis.info("stats")["total_net_input_bytes"]
    ended = moved("program.py", timeout=300)
    assert (ended.code, ended.out, ended.err) == (at_home.code, at_home.out, at_home.err)
    assert ended.where() == {"cluster"}, ended.reasons()
    sent = redis.info("stats")["total_net_input_bytes"] - before
    # An array of 67 MB, which stays from its second call on, and two results of 17 MB; five calls take the array.
    assert 67e6 + 2 * 16e6 < sent < 2 * 68e6 + 2 * 18e6
    assert not [*redis.scan_iter("graft:guests:*:part:*"), *redis.scan_iter("graft:guests:*:value:*")]


def test_what_the_calls_of_a_killed_program_shared_leaves_redis_with_its_guests(write, moved, monkeypatch, redis):
    monkeypatch.setenv("GRAFT_GUEST_LEASE", "1")
    write("program.py", """
        import os, signal
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            executor, shared = ProcessPoolExecutor(2), bytes(1 << 20)
            print(list(executor.map(len, 4 * [shared])), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """)  # fmt: skip
    ended = moved("program.py")
    assert (ended.code, ended.out) == (-signal.SIGKILL, f"{4 * [1 << 20]}\n")
    wait_until(lambda: not list(redis.scan_iter("graft:guests:*:part:*")), what="its parts are gone")


def test_a_value_above_the_limit_is_an_error_that_names_it(write, moved, monkeypatch):
    monkeypatch.setenv("GRAFT_GUEST_VALUE_LIMIT", "1000000")
    write("program.py", """
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            with ProcessPoolExecutor(1) as executor:
                print(executor.submit(len, bytes(1_000_000)).exception(), executor.submit(len, bytes(900_000)).result())
    """)  # fmt: skip
    ended = moved("program.py")
    assert "takes 1000" in ended.out
    assert "the limit is 1000000; pass a reference to it (a path, a key), or raise GRAFT_GUEST_VALUE_LIMIT 900000" in (
        ended.out
    )
