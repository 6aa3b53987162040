"""How a message is taken from Redis: a script, and what is remembered until it answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from graft.config import lua

TAKE: Final = lua.text(__file__, "fetch")


class Look:
    """The command that looks at *queues* for messages, whose lists and records are *keys*.

    All but its last arguments stay the same, and they are many: packed anew each time they took as long as taking.
    """

    def __init__(self, keys: Sequence[str], queues: Sequence[str]) -> None:
        names = [json.dumps(queue) for queue in queues]
        first = ["EVAL", TAKE, len(keys), *keys, len(queues), *names]
        self._count = len(first)
        self._first = b"".join(map(_packed, first))

    def packed(self, *last: object) -> bytes:
        """The command as it travels; *last* are the arguments that differ: time, signs, tags."""
        return b"*%d\r\n%b%b" % (self._count + len(last), self._first, b"".join(map(_packed, last)))


def _packed(argument: object) -> bytes:
    content = str(argument).encode()
    return b"$%d\r\n%b\r\n" % (len(content), content)


class Asked(NamedTuple):
    """A look for messages that has not been answered: the tags that they would have, and where they may be from.

    ``settled`` are messages of earlier looks, of which Redis was told on the way.
    """

    tags: tuple[str, ...]
    queues: tuple[str, ...]
    settled: tuple[str, ...]
