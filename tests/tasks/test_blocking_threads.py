from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading

import pytest

from graft.config.deployment import current
from graft.tasks.blocking_threads import THREADS, HelperThreads, ask, soon

mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="nobody's")


def test_many_calls_share_a_few_threads():
    gate, seen, lock = threading.Event(), set(), threading.Lock()

    def note() -> int:
        with lock:
            seen.add(threading.current_thread())
        gate.wait(30)
        return threading.get_ident()

    async def many() -> list[int]:
        calls = [asyncio.ensure_future(ask(note)) for _ in range(50)]
        await asyncio.sleep(0.1)
        gate.set()
        return await asyncio.gather(*calls)

    idents = asyncio.run(many())
    assert len(idents) == 50
    assert threading.get_ident() not in idents
    assert 1 <= len(seen) <= THREADS


def test_an_error_reaches_whoever_asked():
    async def fails() -> None:
        await ask(int, "no number")

    with pytest.raises(ValueError, match="no number"):
        asyncio.run(fails())


def test_a_call_has_the_context_of_whoever_asked():
    async def asks() -> str:
        mark.set("mine")
        return await ask(mark.get)

    assert asyncio.run(asks()) == "mine"


def test_a_call_that_was_given_up_before_it_began_is_not_made():
    helpers, begun, gate, made = HelperThreads(most=1), threading.Event(), threading.Event(), []

    def hold() -> None:
        begun.set()
        gate.wait(30)

    helpers.add(hold)
    assert begun.wait(30)

    async def gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(current._parts, HelperThreads, helpers)
        call = asyncio.ensure_future(ask(made.append, "made"))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(gives_up(monkeypatch))
    gate.set()
    helpers.close()
    assert made == []


def test_a_call_that_fails_ends_no_thread(caplog):
    helpers, done = HelperThreads(most=1), threading.Event()
    helpers.add(lambda: 1 // 0)
    helpers.add(done.set)
    assert done.wait(30)
    assert "a call on a helper thread failed" in caplog.text
    helpers.close()
    with pytest.raises(RuntimeError, match="interpreter is ending"):
        helpers.add(done.set)


PROGRAM = """
import os
import time
from graft.tasks.blocking_threads import soon

def tell(what):
    time.sleep(0.2)
    print(what, flush=True)

soon(tell, "told at the end")
if not (child := os.fork()):
    soon(tell, "told by a child")
else:
    os.waitpid(child, 0)
"""


def test_what_is_told_last_is_told_before_the_process_ends_and_by_forked_children_too():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert (sorted(done.stdout.splitlines()), done.stderr) == (["told at the end", "told by a child"], "")


def test_nobody_has_to_wait_for_what_is_told():
    told = threading.Event()
    soon(told.set)
    assert told.wait(30)
