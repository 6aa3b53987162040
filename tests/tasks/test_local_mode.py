"""``GRAFT_MODE=local``: batches without Redis and workers, on copies, with the results and errors of the cluster."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.stack import ROOT, clean_environ

NOWHERE = "redis://127.0.0.1:1/0"
HEAD = """
import asyncio, itertools, sys, threading
import graft
from tests import samples
submit = graft.submit
"""
# Programs, and what they print; the same on workers but for the last ones.
PROGRAMS = {
    "values": ("print(submit(samples.square, range(5)).collect(60))", "[0, 1, 4, 9, 16]"),
    "async": ("print(submit(samples.async_square_slowly_if_even, range(5)).collect(60))", "[0, 1, 4, 9, 16]"),
    "stream": (
        "print([v for v in itertools.islice(submit(samples.square, itertools.count()), 4)])", "[0, 1, 4, 9]",
    ),
    "awaited": ("async def main(): return await submit(samples.square, [3])\nprint(asyncio.run(main()))", "[9]"),
    "reduced with errors": (
        "print(submit(samples.raise_value_error_if_odd, range(5), reduce=samples.tally, on_error='keep').collect(60))",
        "{'values': 6, 'ValueError': 2}",
    ),
    "reduced": ("print(submit(samples.square, range(5), reduce=samples.total).collect(60))", "30"),
    "unpacked": ("print(submit(samples.add, [((1,), {'b': 2})], unpack=True).collect(60))", "[3]"),
    "copies": (
        "items = [[1]]\nprint(submit(list.append, [((items[0], 2), {})], unpack=True).collect(60), items)",
        "[None] [[1]]",
    ),
    "a lock": (
        "outcomes = submit(samples.identity, [threading.Lock(), 2]).as_completed()\n"
        "print(sorted(type(o.error).__name__ for o in outcomes))", "['NoneType', 'UnpicklableError']",
    ),
    "an error": (
        "try: submit(samples.raise_detailed, [7]).collect(60)\n"
        "except samples.Detailed as e: print(e.code, e.reason, type(e.__cause__).__name__,"
        " 'raise_detailed' in str(e.__cause__))", "7 as asked RemoteTraceback True",
    ),
    "an exit": (
        "try: submit(samples.exit_process, [3]).collect(60)\nexcept graft.ProcessExitError as e: print(e)",
        "the callable tried to end the worker's process: SystemExit(3)",
    ),
    "a captured list": (
        "seen = []\ntry: submit(lambda x: seen.append(x), [1])\n"
        "except graft.UnreferenceableError as e: print('seen' in str(e))",
        "True",
    ),
    "retries": (
        "b = submit(samples.fail_until, [(sys.argv[1], 3)], retry=graft.RetryPolicy(3, base=0.0))\n"
        "print(b.collect(60), b.progress().retries)", "[3] 2",
    ),
    "async timeout": (
        "b = submit(samples.async_pause, [((1,), {'seconds': 30})], unpack=True, timeout=0.1)\n"
        "try: b.collect(60)\nexcept graft.ItemTimeoutError as e: print(e)",
        "the item ran longer than its limit of 0.1 s",
    ),
    "cancelled": (
        "b = submit(samples.async_sleep, [30.0] * 4, concurrency=2)\n"
        "import time\nwhile not b.progress().sent: time.sleep(0.01)\ntime.sleep(0.3)\nb.cancel(running=True)\n"
        "print({type(o.error).__name__ for o in b.as_completed(60)})", "{'CancelledBatchError'}",
    ),
}  # fmt: skip


def run(code: str, argument: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code, argument], env=env, cwd=ROOT, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def without_redis() -> dict[str, str]:
    return {**clean_environ(os.environ), "CELERY_BROKER_URL": NOWHERE, "GRAFT_MODE": "local"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_batch_gives_the_same_here(name, tmp_path):
    code, wanted = PROGRAMS[name]
    assert run(code, str(tmp_path / "file"), without_redis()) == wanted


def test_a_batch_gives_the_same_on_workers(stack, tmp_path):
    """All in one process, which takes less time."""
    code = "\n".join(f"def p{n}():\n  " + code.replace("\n", "\n  ") for n, (code, _) in enumerate(PROGRAMS.values()))
    code += "\n" + "\n".join(f"p{n}()" for n in range(len(PROGRAMS)))
    assert run(code, str(tmp_path / "file"), stack.env).splitlines() == [wanted for _, wanted in PROGRAMS.values()]


def test_a_letter_is_kept_in_memory():
    code = (
        "b = submit(samples.raise_value_error_if_odd, range(3), retry=2)\nlist(b.as_completed())\n"
        "(letter,) = graft.local_letters()\nprint(letter.reason, letter.function, letter.error, letter.runs)"
    )
    wanted = "retries_exhausted tests.samples:raise_value_error_if_odd ValueError: 1 is odd 1"
    assert run(code, "", without_redis()) == wanted
