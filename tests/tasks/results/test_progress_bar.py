"""The bar is for people: on a terminal, where it is asked for, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from tests.stack import ROOT

BATCH = "graft.submit(samples.pause, range(12), batch_size=1).collect(60, progress={asked})"
AWAITED = "asyncio.run(asyncio.wait_for(graft.submit(samples.pause, range(12), batch_size=1), 60))"
EXECUTOR = "with graft.CeleryExecutor() as executor: list(executor.map(samples.pause, range(12)))"
POOL = "with graft.Pool() as pool: pool.map(samples.pause, range(12), chunksize=1)"


def shown(stack, code: str, *, is_terminal: bool = True, **environ: str) -> str:
    """What the program writes to stderr, which is a terminal."""
    ours, theirs = pty.openpty()
    program = f"import asyncio, graft\nfrom tests import samples\n{code}"
    env = {**stack.env, "TERM": "xterm", "COLUMNS": "120", **environ}
    try:
        stderr = theirs if is_terminal else subprocess.PIPE
        done = subprocess.Popen([sys.executable, "-c", program], env=env, cwd=ROOT, stderr=stderr, text=True)
        os.close(theirs)
        if not is_terminal:
            return done.communicate(timeout=60)[1]
        text = b""
        while True:
            try:
                text += os.read(ours, 65536)
            except OSError:  # The program has ended, and with it the terminal.
                assert done.wait(60) == 0, text
                return text.decode()
    finally:
        os.close(ours)


@pytest.mark.parametrize("code", [BATCH.format(asked=None), AWAITED, EXECUTOR, POOL])
def test_a_bar_is_shown_on_a_terminal_where_the_environment_asks(stack, code):
    assert "12/12" in shown(stack, code, GRAFT_PROGRESS="1")


def test_a_bar_is_shown_to_whoever_asks_for_it_and_on_no_other_output(stack):
    assert "12/12" in shown(stack, BATCH.format(asked=True))
    assert shown(stack, BATCH.format(asked=False), GRAFT_PROGRESS="1") == ""
    assert shown(stack, BATCH.format(asked=True), is_terminal=False) == ""
