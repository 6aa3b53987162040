"""Loads Lua scripts, each of which stands in a ``.lua`` file beside the module that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redis.commands.core import Script


def load(module: str, name: str) -> Script:
    """The script in *name*``.lua`` beside the file *module*; call it with ``keys=``, ``args=`` and ``client=``.

    Redis is sent the digest of the script, and its text only where it does not know it yet, in pipelines too.
    """
    no_client: Any = None  # Each call names its own.
    return Script(no_client, Path(module).with_name(f"{name}.lua").read_bytes())
