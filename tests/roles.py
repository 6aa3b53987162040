"""Whom the tests are to Redis: everybody is a user of his own, with the rules of his role and no more.

Workers are the user ``worker``. What a test does as a caller is done as the user ``caller``, who has the rules of one
role at a time: of the one that the test's subject has in real life. What a test looks up or breaks itself (``redis``,
``stack.connect()``) is done as an administrator::

    pytestmark = pytest.mark.acl_role("operator")      # a module or a test; who does not say so is a producer
    with acting_as("viewer"):                          # a few lines of a test
        letters = dead_letters.newest()

``GRAFT_TEST_ACL=operator pytest …`` has those who do not say so be operators.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from graft.config import acl
from graft.config.queues import own_names
from graft.scripts.stack import redis_server
from graft.scripts.stack.local_stack import LocalStack

DEFAULT: Final = os.environ.get("GRAFT_TEST_ACL", "")
ADDRESSES: Final = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
NOTES: Final = "~test:*"  # Where the tasks of the tests write down what they did.
EVERYTHING: Final = ["allkeys", "allchannels", "+@all"]

_playing = DEFAULT
_file: Path | None = None  # What servers read that start.
_version: tuple[int, ...] = ()
_running: set[LocalStack] = set()


def version_of(program: str | Path) -> tuple[int, ...]:
    """Which Redis *program* is."""
    told = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)\.(\d+)", told)
    assert found, told
    return tuple(map(int, found.groups()))


def introduce(folder: Path) -> None:
    """Have the private servers of this process know everybody; passwords are their names."""
    global _file, _version
    _file, _version = folder / "users.acl", version_of(redis_server.find(os.environ))
    redis_server.CONFIGURATION += f'aclfile "{_file}"\n'
    _write(_file)


def enter(stack: LocalStack) -> None:
    """*stack* has started: its workers are workers, and whoever takes its environment is a caller."""
    if _file and stack.redis:
        _running.add(stack)
        stack.env |= addresses(stack, "caller")


def leave(stack: LocalStack) -> None:
    _running.discard(stack)


def addresses(stack: LocalStack, user: str) -> dict[str, str]:
    """The variables with which a process of *stack* is *user*; none where there are no users."""
    if not _file or stack.redis is None:
        return {}
    return dict.fromkeys(ADDRESSES, f"redis://{user}:{user}@127.0.0.1:{stack.redis.port}/0")


def options() -> list[str]:
    """For the command line of a server that a test starts itself, and that knows everybody too."""
    return ["--aclfile", str(_file)] if _file else []


def login(user: str) -> str:
    """What *user* has before the host in the address of such a server; nothing where there are no users."""
    return f"{user}:{user}@" if _file else ""


def play(role: str) -> None:
    """From now on callers are *role*, on every server."""
    global _playing
    if not _file or role == _playing:
        return
    _playing = role
    _write(_file)
    for stack in _running:
        if stack.redis and stack.redis.pid:
            with stack.connect() as client:
                client.execute_command("ACL", "SETUSER", "caller", "reset", "on", ">caller", *_rules(role))


@contextmanager
def acting_as(role: str) -> Iterator[None]:
    """Callers are *role* while the block lasts."""
    before = _playing
    play(role)
    try:
        yield
    finally:
        play(before)


def _rules(role: str) -> list[str]:
    return EVERYTHING if role == "admin" else [*acl.roles(own_names())[role].rules(_version), NOTES]


def _write(path: Path) -> None:
    everybody = {name: _rules(name) for name in ("admin", *acl.roles(()))} | {"caller": _rules(_playing)}
    lines = [f"user {name} on >{name} {' '.join(rules)}" for name, rules in everybody.items()]
    # The servers' own password, which only the tests themselves use, is that of an administrator.
    path.write_text("\n".join(["user default on nopass allkeys allchannels +@all", *lines]) + "\n")
