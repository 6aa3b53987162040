"""Redis users for the roles of a deployment, each with what its part of the work needs and no more.

    python -m graft.config.acl DIRECTORY        # users.acl for Redis, and addresses.env with a password for each role
    CELERY_BROKER_URL=redis://$REDIS_WORKER@HOST:6379/0 celery -A graft worker

Written for the queues of ``config/queues.py``; ``--queue NAME`` adds those that you declare yourself. Redis 7 can let
a user read a key and not write it; for Redis 6.2 (``--redis 6.2``) the keys are the same, and all can be written.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from graft.config import keys
from graft.config.keys import pattern
from graft.config.queues import own_names

Version = tuple[int, ...]
SEVEN: Final = (7, 0)  # From here on a key can be readable only, and a user can have a second set of rules.

PIDBOX: Final = "*.celery.pidbox*"  # Commands wait there for one worker, replies for who asked.
EVENTS: Final = "celeryev.*"  # The queue of a reader of events, and of workers that gossip among them.
RESULTS: Final = (pattern(keys.RESULT), "celery-taskset-meta-*", "chord-unlock-*")
HELD: Final = (f"{keys.UNACKED}*", keys.pattern(keys.RETURNED))
BINDINGS: Final = f"{keys.BINDINGS.rstrip('.')}*"  # Also _kombu.binding_permanent.
EXCHANGED: Final = tuple(map(pattern, keys.BETWEEN_CALLERS_AND_WORKERS))
# Second sets of rules. Redis 7 counts every script as a writer of the keys that it is given, and checks each command in
# it, so these let nobody write.
SEARCHES: Final = f"(+eval +evalsha ~{keys.UNACKED})"  # For a lost message, among those that workers hold.
SEARCHES_ALL: Final = "(+eval +evalsha ~*)"
SEES_DEAD: Final = f"(+hexists %R~{keys.DEAD_LETTERS})"  # Whether a call is buried; nothing of its content.
READS_ALL: Final = "(+@read -@dangerous -scan -randomkey -dbsize %R~*)"
# What an operator's acts write beside what a producer's do, each command on its own keys: dead letters are removed one
# by one, and the list of who did what is added to.
ACTS: Final = (
    f"(+sadd +srem ~{keys.PAUSED})",
    f"(+hset +hdel +zadd +zrem +decrby ~{keys.DEAD_LETTERS} ~{keys.DEAD_LETTERS}:by-time ~{keys.DEAD_LETTERS}:failed*)",
    f"(+set +del ~{keys.DEAD_LETTERS}:lock:*)",
    f"(+incrby +expire ~{keys.DEAD_LETTERS}:replays:*)",
    f"(+del ~{pattern(keys.RUN)})",  # What is replayed begins anew.
    f"(+lpush +ltrim +lrem ~{keys.QUARANTINE})",
    f"(+hincrby ~{keys.QUARANTINE}:counts)",
    f"(+xadd +xtrim ~{keys.AUDIT})",
)

CONNECTIONS: Final = "+client|list"  # The look for leaks counts them by name.
WAKES: Final = "+client|unblock"  # A worker its own processes, which wait for messages (workers/direct).
HEARS: Final = ("+subscribe", "+psubscribe", "+unsubscribe", "+punsubscribe", "+pubsub")
# Every role may ask these, which say whether the server is fit, and who we are; some of them count as dangerous.
HARMLESS: Final = ("+info", "+time", "+select", "+acl|whoami", "+client|setname", "+client|id")


def _commands(*allowed: str, refused: Sequence[str] = (), although: Sequence[str] = ()) -> list[str]:
    """Messages are fetched, counted and acknowledged by scripts, so every role runs them, on its own keys.

    *although* Redis counts them among the dangerous ones, these are needed.
    """
    everywhere = ("+@connection", "+@transaction", "+eval", "+evalsha", "+script|load", "+script|exists")
    return [*everywhere, *allowed, "-@dangerous", "-@admin", *HARMLESS, *although, *refused]


@dataclass(frozen=True)
class Role:
    """Commands, keys to write and keys to read only. ``also`` are rules of their own, from Redis 7 on."""

    purpose: str
    commands: Sequence[str]
    writes: Sequence[str]
    reads: Sequence[str] = ()
    channels: Sequence[str] = ()
    also: Sequence[str] = ()

    def rules(self, version: Version) -> list[str]:
        """The rules as Redis of *version* reads them."""
        only = "%R~" if version >= SEVEN else "~"
        keys = [f"~{key}" for key in self.writes] + [f"{only}{key}" for key in self.reads]
        also = self.also if version >= SEVEN else ()
        return [
            "resetkeys",
            "resetchannels",
            *keys,
            *(f"&{name}" for name in self.channels),
            "-@all",
            *self.commands,
            *also,
        ]


def lists(queues: Iterable[str]) -> list[str]:
    """The patterns of the keys of *queues*: a list for each priority, and one that wakes readers."""
    return [pattern for queue in queues for pattern in (queue, f"{queue}??[0-9]", f"{queue}??sign")]


def roles(queues: Iterable[str]) -> dict[str, Role]:
    """The users of a deployment that has *queues*."""
    waiting = lists(queues)
    # Nothing moves to a place that other rules apply to.
    moves = ("-move", "-copy", "-rename", "-renamenx", "-randomkey")
    data = ("+@read", "+@write", *HEARS)
    caller = _commands(*data, refused=(*moves, "-scan", "-dbsize"))
    sending = (*waiting, BINDINGS, *EXCHANGED, *RESULTS)
    looks_up = (*HELD, keys.WORKERS, pattern(keys.WORKER), keys.PAUSED, keys.HEALTH, pattern(keys.RUN))
    # Whoever hears events notes where kombu is to send them.
    listening = f"(+sadd +srem +llen +del ~{BINDINGS} ~{EVENTS})"
    return {
        "worker": Role(
            "runs tasks; keeps the record of the messages it holds, and everything the deployment knows of itself",
            _commands(*data, "+publish", refused=moves, although=(CONNECTIONS, WAKES)),
            (
                *waiting, BINDINGS, PIDBOX, EVENTS, *HELD, keys.STOCK_HELD, *RESULTS, pattern(keys.RESOURCE_POOL),
                "graft:*",
            ), (), ("*",),
        ),
        "producer": Role(
            "sends work and waits for its answers; may command no worker",
            caller, sending, looks_up, ("*",), (SEARCHES, SEES_DEAD),
        ),
        "operator": Role(
            "a producer that commands workers too; from Redis 7 on reads everything, pauses, purges, cancels, replays, "
            "drops: the commands that do, and the buttons in Flower",
            (*caller, "+publish"), (*sending, PIDBOX, EVENTS, *HELD, f"{keys.TRACE}*"),
            looks_up, ("*",), (READS_ALL, SEARCHES_ALL, *ACTS),
        ),
        "beat": Role(
            "sends what is due; keeps its schedule and lock",
            _commands(*data, refused=(*moves, "-scan")),
            (
                *waiting, BINDINGS, keys.QUEUES, pattern(keys.OVERLAP), pattern(keys.UNIQUE), f"{keys.DUE}*",
                pattern(keys.REDBEAT), keys.BEATS, keys.BEAT_SCHEDULES, keys.BEAT_SENT,
            ), (), ("*",),
        ),
        "viewer": Role(
            "top, health, doctor, track, report, exporter, Flower without inspect: reads everything, writes nothing",
            _commands("+@read", *HEARS), (), ("*",), ("*",), (listening, SEARCHES_ALL),
        ),
        "janitor": Role(
            "clears away what Celery leaves behind",
            _commands("+@read", "+expire", "+srem", "+zadd", "+zrem", "+hset", "+hdel", "+decrby", "+xtrim"),
            (
                BINDINGS, PIDBOX, keys.UNACKED_INDEX, "celery-task*-meta-*", pattern(keys.JANITOR),
                f"{keys.DEAD_LETTERS}*", keys.ATTEMPTS, keys.FUNCTIONS, f"{keys.DURABLE}all",
            ),
            (keys.UNACKED, keys.WORKERS, pattern(keys.WORKER), pattern(keys.FUNCTION_STATS), pattern(keys.DURABLE)),
        ),
    }  # fmt: skip


def users(passwords: Mapping[str, str], queues: Iterable[str] = (), version: Version = SEVEN) -> list[str]:
    """The lines of an ACL file: a user for each role, ``admin`` who may do everything, and nobody without a name."""
    found = roles([*own_names(further=os.environ.get("GRAFT_QUEUES", "")), *queues])
    lines = [f"user {name} on {_hashed(passwords[name])} {' '.join(found[name].rules(version))}" for name in found]
    return [f"user admin on {_hashed(passwords['admin'])} allkeys allchannels +@all", "user default off", *lines]


def _hashed(password: str) -> str:
    return f"#{hashlib.sha256(password.encode()).hexdigest()}"


def write(folder: Path, queues: Iterable[str] = (), version: Version = SEVEN) -> dict[str, str]:
    """Make a password for each role, write both files into *folder* for this user alone, and return the passwords."""
    passwords = {name: secrets.token_hex(24) for name in ("admin", *roles(()))}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(folder / "users.acl", users(passwords, queues, version))
    _write(folder / "addresses.env", [f"REDIS_{name.upper()}={name}:{word}" for name, word in passwords.items()])
    return passwords


def _write(path: Path, lines: Iterable[str]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m graft.config.acl", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path, help="where users.acl and addresses.env are written, mode 600")
    parser.add_argument("--queue", action="append", default=[], help="a queue of your own; may be repeated")
    parser.add_argument("--redis", default="7.0", help="the server's version (default 7.0)")
    asked = parser.parse_args(arguments)
    write(asked.directory, asked.queue, tuple(int(part) for part in asked.redis.split(".")))
    for name, role in roles(()).items():
        print(f"{name:9} {role.purpose}")
    print(f"redis-server --aclfile {asked.directory / 'users.acl'}; the names and passwords are in addresses.env")


if __name__ == "__main__":
    main(sys.argv[1:])
