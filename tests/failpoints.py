"""Makes a worker's process die at a step of Celery's chord bookkeeping, once: ``celery -A tests.failpoints worker``.

TEST_FAILPOINT: ``before_part`` (the result is stored, the part not counted), ``after_claim`` (the last part has claimed
the body and not sent it), ``after_publish`` (the body is sent, the claim not cleaned up).
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery.backends.redis import RedisBackend
from celery.canvas import chord

from graft.celery import app


def note(text: str) -> None:
    with open(os.environ["TEST_LEDGER"], "a") as ledger:
        ledger.write(text + "\n")


def die_once() -> None:
    """End this process without any clean-up, unless one has died already."""
    mark = Path(os.environ["TEST_LEDGER"] + ".died")
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    note("died")
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Have the process die at *point*."""
    part_return, expires = RedisBackend.on_chord_part_return, RedisBackend._chord_publish_claim_expires
    cleanup = RedisBackend._chord_cleanup_script.func

    def dying_part_return(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if point == "before_part" and getattr(request, "task", "") == "test.part" and request.group_index == 1:
            die_once()
        return part_return(self, request, *args, **kwargs)

    def dying_expires(self: Any, *args: Any) -> Any:
        if point == "after_claim":
            die_once()
        return expires(self, *args)

    def dying_cleanup(self: Any) -> Any:
        script = cleanup(self)

        def run(*args: Any, **kwargs: Any) -> Any:
            if point == "after_publish":
                die_once()
            return script(*args, **kwargs)

        return run

    RedisBackend.on_chord_part_return = dying_part_return
    RedisBackend._chord_publish_claim_expires = dying_expires
    RedisBackend._chord_cleanup_script = property(dying_cleanup)


@app.task(name="test.part")
def part(x: int) -> int:
    return x


@app.task(name="test.body")
def body(values: list[int]) -> int:
    note("body")
    return sum(values)


def run_chord() -> None:
    """Run a chord, look after it as Beat would have it done, and print what it came to."""
    from graft.tasks.cleanup import chord_recovery

    chord_recovery.PATIENCE = 0.0
    result = chord([part.s(number) for number in (1, 2, 3)], body.s()).apply_async()
    deadline = time.monotonic() + 120
    while not result.ready() and time.monotonic() < deadline:
        chord_recovery.finish_chords()
        time.sleep(0.2)
    print(result.get(timeout=5))


if os.environ.get("TEST_FAILPOINT"):
    arm(os.environ["TEST_FAILPOINT"])
