"""Programs that tests start as processes of their own, and what they ask of Redis."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def program(stack, code, *arguments):
    """*code*, with *arguments*, as a running client process of *stack*; killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**stack.env, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
