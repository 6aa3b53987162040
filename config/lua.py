"""Loads Lua scripts, each of which stands in a ``.lua`` file beside the module that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from redis.commands.core import Script

LOADED: Final[list[bytes]] = []  # Each script that may be run, as Redis is sent it.


def load(module: str, *names: str, functions: str = "") -> Script:
    """The script in ``.lua`` files beside the file *module*; call it with keys, arguments and a client or pipeline.

    Of several *names* the last is the script, and those before it define what it shares with others; *functions* is the
    text of what it shares with scripts elsewhere. Redis is sent the digest of the script, and its text only where it
    does not know it yet.
    """
    no_client: Any = None  # Each call names its own.
    whole = "".join([functions, *(text(module, name) for name in names)]).encode()
    LOADED.append(whole)
    return Script(no_client, whole)


def text(module: str, name: str) -> str:
    """The text of the script, for EVAL where nobody can wait until Redis has been told of it."""
    return Path(module).with_name(f"{name}.lua").read_text("utf-8")
