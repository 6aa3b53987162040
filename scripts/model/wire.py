"""Stands between redis-py and Redis: stops an actor before each command that others can notice, and injects the time.

A pipeline is split into its commands, a transaction is one. ``TIME``, asked for by a client or inside a script, is
answered from a list that the model keeps; nothing else about the scripts is changed, and each runs in Redis.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import redis
from redis.connection import AbstractConnection

CLOCK: Final = "model:clock"  # Seconds and microseconds, as TIME would say them.
PRELUDE: Final = (
    "local redis = setmetatable({call = function(name, ...) "
    f"if name == 'TIME' then return redis.call('LRANGE', '{CLOCK}', 0, -1) end "
    "return redis.call(name, ...) end}, {__index = redis})\n"
)
HANDSHAKE: Final = frozenset({b"HELLO", b"AUTH", b"CLIENT", b"SELECT", b"PING", b"READONLY", b"SCRIPT", b"INFO"})
# What others can notice. Statistics, bodies and records of single runs are between one process and the reader later.
NOTICED: Final = (b"default", b"graft:unacked", b"graft:run:", b"celery-task-meta-", b"graft:dead-letters",
                  b"graft:cancel", b"graft:paused", b"graft:quarantine", b"graft:pool:", b"graft:unique:")  # fmt: skip
FIGURES: Final = b"graft:figures"  # Statistics, which have the times of this machine.

Command = list[bytes]


def split(packed: bytes) -> list[Command]:
    """The commands in *packed*, each as its words."""
    commands, at = [], 0
    while at < len(packed):
        end = packed.index(b"\r\n", at)
        count, at = int(packed[at + 1 : end]), end + 2
        words = []
        for _ in range(count):
            end = packed.index(b"\r\n", at)
            size, at = int(packed[at + 1 : end]), end + 2
            words.append(packed[at : at + size])
            at += size + 2
        commands.append(words)
    return commands


def pack(command: Sequence[bytes]) -> bytes:
    """*command* as it travels."""
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in command)


def steps(commands: Sequence[Command]) -> Iterator[list[Command]]:
    """*commands* in groups that Redis runs at once: a transaction, or one."""
    group: list[Command] = []
    for command in commands:
        group.append(command)
        if group[0][0].upper() != b"MULTI" or command[0].upper() == b"EXEC":
            yield group
            group = []


def is_noticed(command: Command) -> bool:
    """Whether *command* touches what other processes decide by."""
    return any(word.startswith(NOTICED) and not word.endswith(b"sign") for word in command[1:] if len(word) < 200)


class Actors(Protocol):
    """Those whose commands go this way."""

    def pause(self, commands: list[Command]) -> tuple[bool, bool]: ...
    def hear(self, reply: object) -> None: ...


class Wire:
    """The way of every command of this process to Redis while it is *installed*.

    Its *actors* are asked before a step whether it is to be run, and its reply read, which raises what they are to see;
    and told each reply.
    """

    def __init__(self, actors: Actors) -> None:
        self.actors = actors
        self.rewrite: Callable[[str], str] = lambda text: text  # Of scripts, for a variant that is known to be wrong.
        self.announce: Callable[[bytes], None] = lambda record: None  # Called with what is published.
        self.is_direct = True  # Nobody is stopped: the model itself asks.
        self._names: dict[bytes, bytes] = {}  # Redis's name for a script as it runs here, by its own.
        self._texts: dict[bytes, bytes] = {}

    def forget_scripts(self) -> None:
        """Have scripts rewritten anew."""
        self._names.clear()
        self._texts.clear()

    def load(self, text: bytes, client: Any) -> None:
        """Have Redis know the script *text*, as it runs here."""
        name = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        self._names[name] = client.script_load(self._changed(text)).encode()

    def _changed(self, text: bytes) -> bytes:
        if text not in self._texts:
            changed = self.rewrite(text.decode())
            self._texts[text] = ((PRELUDE if "'TIME'" in changed else "") + changed).encode()
        return self._texts[text]

    def _translated(self, command: Command) -> Command:
        match command[0].upper():
            case b"WATCH":
                raise RuntimeError("WATCH is a state of the connection, and the model puts back what Redis holds")
            case b"TIME":
                return [b"LRANGE", CLOCK.encode(), b"0", b"-1"]
            case b"EVAL":
                return [command[0], self._changed(command[1]), *command[2:]]
            case b"EVALSHA":
                return [command[0], self._names.get(command[1], command[1]), *command[2:]]
            case b"SCRIPT" if command[1].upper() == b"EXISTS":
                return [*command[:2], *(self._names.get(name, name) for name in command[2:])]
            case b"SCRIPT" if command[1].upper() == b"LOAD":
                return [*command[:2], self._changed(command[2])]
        return command

    def _reply_to(self, command: Command, read: Callable[[], Any]) -> Any:
        try:
            reply = read()
        except redis.ResponseError as error:
            return error
        if command[0].upper() != b"SCRIPT" or command[1].upper() != b"LOAD":
            return reply
        name = hashlib.sha1(command[2], usedforsecurity=False).hexdigest().encode()
        self._names[name] = reply if isinstance(reply, bytes) else reply.encode()
        return name

    def note(self, command: Command, reply: object) -> None:
        """*command* was answered with *reply*. Statistics, and what wakes who waits, tell nobody what to do next."""
        if command[0] != b"BRPOP" and not any(word.startswith(FIGURES) for word in command[1:]):
            self.actors.hear(reply)
        if command[0].upper() == b"PUBLISH":
            self.announce(command[2])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Meanwhile every connection of redis-py goes this way."""
        kind: Any = AbstractConnection
        send, read, disconnect = kind.send_packed_command, kind.read_response, kind.disconnect
        wire = self

        def send_packed(connection: Any, packed: Any, check_health: bool = True) -> None:
            if wire.is_direct or getattr(connection, "_model_is_inside", False):
                send(connection, packed, check_health)
                return
            whole = packed if isinstance(packed, bytes) else b"".join(map(bytes, packed))
            commands = split(whole)
            if commands[0][0].upper() in HANDSHAKE and commands[0][0].upper() != b"SCRIPT":
                send(connection, packed, check_health)
                return
            if connection._sock is None:
                connection.connect()
            replies: deque[Any] = deque()
            connection._model_replies = replies
            for group in steps(commands):
                try:
                    runs, answers = wire.actors.pause(group)
                except BaseException as error:
                    _break_off(connection, error)
                    raise
                if runs:
                    connection._model_is_inside = True
                    try:
                        send(connection, [pack(wire._translated(each)) for each in group], False)
                        found = [wire._reply_to(each, lambda: read(connection)) for each in group]
                    finally:
                        connection._model_is_inside = False
                    for each, reply in zip(group, found, strict=True):
                        replies.append(reply)
                        wire.note(each, reply)
                if not (runs and answers):
                    connection.disconnect()
                    raise redis.ConnectionError("cut off by the model")

        def read_response(connection: Any, *args: Any, **options: Any) -> Any:
            replies = getattr(connection, "_model_replies", None)
            if not replies:
                return read(connection, *args, **options)
            reply = replies.popleft()
            if isinstance(reply, BaseException):
                raise reply
            return reply

        def disconnected(connection: Any, *args: Any, **options: Any) -> None:
            connection._model_replies = deque()
            disconnect(connection, *args, **options)

        kind.send_packed_command, kind.read_response, kind.disconnect = send_packed, read_response, disconnected
        try:
            yield
        finally:
            kind.send_packed_command, kind.read_response, kind.disconnect = send, read, disconnect


def _break_off(connection: Any, error: BaseException) -> None:
    """A step on *connection* is not taken. If its actor dies, another may go on with it: nothing was sent."""
    if isinstance(error, Exception):
        connection.disconnect()
    else:
        connection._model_replies = deque()
