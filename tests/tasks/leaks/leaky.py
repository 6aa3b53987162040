"""Callables that leak, one each way, for the tests of the leak checks. Workers import them from here."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from typing import Any

from graft.config.redis_client import connect, shared

_kept: list[Any] = []


def memory(_: int) -> int:
    """Keeps 2 MiB."""
    _kept.append(bytearray(b"x" * (2 << 20)))
    return len(_kept)


def files(_: int) -> int:
    """Keeps two files open."""
    for _ in range(2):
        file = tempfile.NamedTemporaryFile(prefix="spool-", delete=False)  # noqa: SIM115 - the leak
        _kept.append(file)
    return len(_kept)


def threads(_: int) -> int:
    """Leaves two threads behind that wait for ever."""
    for _ in range(2):
        threading.Thread(target=threading.Event().wait, name=f"forgotten-{len(_kept)}", daemon=True).start()
    return threading.active_count()


def connections(_: int) -> int:
    """Opens two connections to Redis and does not close them."""
    for _ in range(2):
        client = connect(client_name="forgotten")
        client.ping()
        _kept.append(client)
    return len(_kept)


def keys(number: int) -> int:
    """Writes ten keys without an expiry."""
    for part in range(10):
        shared().set(f"test:basket:{number}:{part}", "x")
    return number


def innocent(number: int) -> int:
    """Works for a moment and keeps nothing."""
    time.sleep(0.005)
    return len(socket.gethostname()) + number
