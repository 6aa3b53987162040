"""Flower's settings, used by ``celery -A graft flower`` unless --conf names others. Executed by Flower, not imported.

What the environment (FLOWER_*) or the command line says, counts. Otherwise Flower listens on loopback alone, asks for a
password, changes nothing, and remembers what it saw over a restart.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from pathlib import Path
from typing import Any

from tornado.options import options

# As the publisher labels its messages: (callable, N items from M).
_LABEL = re.compile(r"\(?(?P<name>.+), (?P<count>\d+) items from (?P<first>\d+)\)?")
# As the worker tells what became of the items, cut by Celery behind its last space.
_TOLD = re.compile(r"'((?:\d+ of )?\d+ items?\b.*?) ?\.\.\.'?$", re.DOTALL)
_ENVELOPES = ("graft.batch", "graft.reduce")


def format_task(task: Any) -> Any:
    """Show an envelope as the callable, items and batch it stands for, not as signed text."""
    if task.name not in _ENVELOPES:
        return task
    label = _LABEL.fullmatch(str(task.args or "").strip("'\""))
    if label:
        count = int(label["count"])
        task.name = label["name"]
        task.args = f"item {label['first']}" if count == 1 else f"{count:,} items from {label['first']}"
    elif task.name == "graft.reduce":
        task.args = "puts the parts together"
    elif len(str(task.args)) > 200:
        task.args = "an envelope"
    batch = str(getattr(task, "root_id", None) or "")
    if batch:
        task.args = f"{task.args}, batch {batch[:8]}…{batch[-4:]}"
    if task.result:
        told = _TOLD.match(str(task.result))
        task.result = told[1] if told else "a report"
    return task


def _directory() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    directory = Path(state, "celery-graft")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _login() -> list[str]:
    """A password for this run, told once on the terminal, where none was set."""
    login = f"graft:{secrets.token_urlsafe(12)}"
    print(f"Flower: FLOWER_BASIC_AUTH is not set; for this run the login is {login}", file=sys.stderr, flush=True)
    return [login]


_defaults: dict[str, Any] = {
    "address": "127.0.0.1",
    "read_only": True,
    "persistent": True,
    "state_save_interval": 60_000,  # Milliseconds.
    "max_tasks": 20_000,  # Each is kept in memory, and written down every minute.
    "purge_offline_workers": 300,  # Seconds.
    "tasks_columns": "name,args,state,received,runtime,retries,worker,exception,uuid",
}
if "FLOWER_DB" not in os.environ and options.db == "flower":
    _defaults["db"] = str(_directory() / "flower")
if not (options.basic_auth or options.auth):
    _defaults["basic_auth"] = _login()

# The environment was read before this file, and would be overruled by it.
globals().update({name: value for name, value in _defaults.items() if f"FLOWER_{name.upper()}" not in os.environ})
