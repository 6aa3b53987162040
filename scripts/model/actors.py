"""Actors that run real code, each stopped before its next step: one step of one actor at a time.

An actor is a process of the deployment. It has its own parts (``config/deployment.py``), and its own clock, and dies
without another effect: whatever its ``finally`` would have told Redis is not sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Literal

import greenlet
import redis

from graft.config.deployment import current as deployment
from graft.scripts.model.wire import Command, is_noticed

INSIDE: Final = "inside"  # An actor stands in the code of a task.
Fate = Literal["go", "cut", "unheard", "die"]  # Run the step; not at all; run it and lose the reply; die before it.
UUID: Final = rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
SENDER: Final = rb"gen\d+@[\w.-]+"  # A message says which process has sent it.
BODY: Final = rb'"body": ?"[^"]*"'  # Of a message, which its id tells.
CHANCE: Final = re.compile(UUID + b"|" + SENDER + b"|" + BODY)


class Died(BaseException):
    """The process of this actor has ended, at this point."""


class Process:
    """What one process has: its parts, and whether the network carries its commands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts: dict[Any, Any] = {}
        self.is_dead = False
        self.is_cut = False


class Actor:
    """One thing that a process does, from its beginning to its end."""

    def __init__(self, process: Process, name: str, func: Callable[[], Any]) -> None:
        self.process = process
        self.name = name
        self.next: Any = "begin"  # Before which step it stands.
        self.steps: list[Any] = []  # Those that it took.
        self.heard: tuple[bytes, ...] = ()  # The replies that it got, with its steps: its next ones depend on no more.
        self.commands: list[Command] = []  # That it sends in its next step.
        self.is_over = False
        self.error: BaseException | None = None
        self._func = func
        self._greenlet: Any = None

    def __repr__(self) -> str:
        return self.name


class Scheduler:
    """Lets one actor take one step."""

    def __init__(self) -> None:
        self.current: Actor | None = None
        self.on_step: Callable[[str], None] = lambda text: None
        self.on_switch: Callable[[bool], None] = lambda is_inside: None

    def step(self, actor: Actor, fate: Fate = "go") -> None:
        """Let *actor* go on to its next stop, or to its end."""
        if actor._greenlet is None:
            actor._greenlet = greenlet.greenlet(actor._func)
            arguments: tuple[Any, ...] = ()
        else:
            arguments = (fate,)
        before, deployment._parts = deployment._parts, actor.process.parts
        self.current = actor
        self.on_switch(True)
        try:
            actor.next = actor._greenlet.switch(*arguments)
        except Died:
            pass
        except Exception as error:
            actor.error = error
        finally:
            self.on_switch(False)
            self.current, deployment._parts = None, before
        actor.is_over = actor._greenlet.dead

    def kill(self, actor: Actor) -> None:
        """End *actor* where it stands."""
        actor.process.is_dead = True
        if actor._greenlet is not None and not actor._greenlet.dead:
            self.step(actor, "die")
        actor.is_over = True

    def stop(self, what: Any) -> Fate:
        """Called by an actor: let others go on, until it is its turn again."""
        actor = self.current
        assert actor is not None
        if actor.process.is_dead:
            raise Died
        fate: Fate = actor._greenlet.parent.switch(what)
        if fate == "die" or actor.process.is_dead:
            raise Died
        actor.steps.append(what)
        cut = "cut" if actor.process.is_cut else fate
        self.on_step(f"  {actor.name}: {what}{'' if cut == 'go' else ' (' + cut + ')'}")
        actor.heard += (str(what).encode(),)
        return fate

    def hear(self, reply: object) -> None:
        """An actor was answered."""
        if self.current is not None:
            self.current.heard += (normal(reply),)

    def pause(self, commands: list[Command]) -> tuple[bool, bool]:
        """Before a step of the actor that runs: whether it is run, and its reply read."""
        actor = self.current
        if actor is None:
            return True, True
        if actor.process.is_dead:
            raise Died
        if not any(map(is_noticed, commands)):
            if actor.process.is_cut:
                raise redis.ConnectionError("cut off by the model")
            return True, True
        actor.commands = commands
        fate = self.stop(_named(commands))
        actor.commands = []
        if actor.process.is_cut or fate == "cut":
            return False, False
        return True, fate != "unheard"


def normal(reply: object) -> bytes:
    """*reply* without what differs between two histories that are otherwise the same."""
    told = sorted(each for each in reply.items() if not _is_for_pardons(each[0])) if isinstance(reply, dict) else reply
    return CHANCE.sub(b"u", repr(told).encode())


def _is_for_pardons(name: object) -> bool:
    """Whether the field *name* of the record of a task's runs is read by nobody but the script that pardons one."""
    return isinstance(name, bytes) and name.startswith((b"begun:", b"pardoned:"))


def _named(commands: list[Command]) -> str:
    """A name for a step: its commands with their keys, without what differs from one time to the next."""
    return " ".join(f"{each[0].decode()}:{_key(each)}" for each in commands if each[0] not in (b"MULTI", b"EXEC"))


def _key(command: Command) -> str:
    at = {b"EVAL": 3, b"EVALSHA": 3}.get(command[0].upper(), 1)
    return command[at][:60].decode(errors="replace") if len(command) > at else ""
