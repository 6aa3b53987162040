"""The shares of a running program, in Redis: an operator sets them, a program reads them each second.

    graft:compat:answers   program, or * for all -> {"shadow": 0.05, "canary": 0.2, "limit": 0.02}
    graft:compat:back      "program module:function" -> why that callable went back to the old way, and when
    graft:compat:verdicts  "program host process" -> that process's verdict so far, and when

A program whose Redis does not answer answers the old way. What is set takes the place of the program's own options,
and lifts earlier ways back.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import redis

from graft.compat.shadow.plan import Plan
from graft.config import keys
from graft.config.redis_client import connect, server_time

logger = logging.getLogger("graft.compat.shadow")

ANSWERS: Final = keys.COMPAT + "answers"
BACK: Final = keys.COMPAT + "back"
VERDICTS: Final = keys.COMPAT + "verdicts"
EVERY: Final = 1.0  # Seconds between two looks.
FRESH: Final = 4.0  # Seconds after which what was read last no longer counts.
ALL: Final = "*"
KEPT: Final = 30 * 86400  # Seconds after the last way back.
TOLD_EVERY: Final = 5.0  # Seconds between two verdicts of one process.
VERDICT_KEPT: Final = 86400


@dataclass(frozen=True)
class Shares:
    """What holds at run time, see :class:`graft.compat.shadow.plan.Plan`."""

    shadow: float = 0.0
    canary: float = 0.0
    limit: float = Plan.limit

    def __post_init__(self) -> None:
        Plan(self.shadow, self.canary, limit=self.limit)


def put(client: Any, program: str, shares: Shares) -> None:
    """Have *program* follow *shares* within about a second, and lift its ways back.

    ``*`` stands for every program, and takes the place of what was set for single ones.
    """
    if program == ALL:
        client.delete(ANSWERS)
    client.hset(ANSWERS, program, json.dumps(asdict(shares)))
    lift(client, program)


def clear(client: Any, program: str) -> bool:
    """Have *program* follow its own options again; whether anything was set."""
    lift(client, program)
    return bool(client.hdel(ANSWERS, program))


def lift(client: Any, program: str) -> None:
    """Forget the ways back of *program*, or of all."""
    names = [name for name in client.hkeys(BACK) if program == ALL or name.startswith(f"{program} ".encode())]
    if names:
        client.hdel(BACK, *names)


def settings_in(client: Any) -> dict[str, Shares]:
    """What is set, by program."""
    return {name.decode(): _shares(text) for name, text in sorted(client.hgetall(ANSWERS).items())}


def ways_back(client: Any) -> list[dict[str, Any]]:
    """The callables that went back: ``program``, ``callable``, ``why``, and ``at``, seconds since the epoch."""
    found = []
    for name, text in sorted(client.hgetall(BACK).items()):
        program, _, func = name.decode().partition(" ")
        found.append({"program": program, "callable": func, **json.loads(text)})
    return found


def verdicts(client: Any, program: str) -> list[str]:
    """The verdicts of the processes of *program*, or of all, as JSON: of those that run, and of the last day."""
    oldest, prefix = server_time(client) - VERDICT_KEPT, f"{program} ".encode()
    found = [
        json.loads(text)
        for name, text in sorted(client.hgetall(VERDICTS).items())
        if program == ALL or name.startswith(prefix)
    ]
    return [str(one["verdict"]) for one in found if one["at"] > oldest]


def _shares(text: bytes) -> Shares:
    found = json.loads(text)
    return Shares(**{name: float(found[name]) for name in ("shadow", "canary", "limit") if name in found})


class Switch:
    """The shares that hold in this process now. A thread looks each second; readers never wait.

    Args:
        changed: is told the callables that went back, at each look.
        verdict: the verdict so far as JSON, for whoever asks while the program runs.
    """

    def __init__(self, plan: Plan, changed: Callable[[Mapping[str, str]], None], verdict: Callable[[], str]) -> None:
        self._own = Shares(plan.shadow, plan.canary, plan.limit)
        self._program = plan.program
        self._changed, self._verdict = changed, verdict
        self._process = f"{plan.program} {socket.gethostname()} {os.getpid()}"
        self._told, self._tell_at = "", 0.0
        self._shares = self._own
        self._read_at = -FRESH
        self._client = connect(socket_timeout=2.0, client_name="graft-shadow")
        self._unsaid: dict[str, str] = {}  # Ways back that Redis does not know yet.
        self._is_over = threading.Event()
        self._was_said = False
        self._look()
        self._thread = threading.Thread(target=self._run, name="graft-shadow-switch", daemon=True)
        self._thread.start()

    def shares(self) -> Shares | None:
        """What holds; None while Redis does not answer."""
        return self._shares if time.monotonic() - self._read_at < FRESH else None

    @property
    def own(self) -> Shares:
        """What holds where nothing is set."""
        return self._own

    def go_back(self, name: str, why: str) -> None:
        """Let the other processes of this program know that the callable *name* went back."""
        self._unsaid[name] = why

    def stop(self) -> None:
        """Look no more; what is to be said is said once more."""
        self._is_over.set()
        self._thread.join(timeout=2 * EVERY)

    def _run(self) -> None:
        while not self._is_over.wait(EVERY):
            self._look()
        self._tell_at = 0.0
        self._look()

    def _look(self) -> None:
        try:
            self._say()
            with self._client.pipeline(transaction=False) as pipe:
                pipe.hmget(ANSWERS, self._program, ALL)
                pipe.hgetall(BACK)
                (ours, everybody), back = pipe.execute()
            text = everybody if ours is None else ours
            shares = self._own if text is None else _shares(text)
            prefix = f"{self._program} ".encode()
            found = {
                name[len(prefix) :].decode(): str(json.loads(reason)["why"])
                for name, reason in back.items()
                if name.startswith(prefix)
            }
        except (redis.RedisError, OSError) as error:
            if not self._was_said:
                self._was_said = True
                logger.warning(
                    "Redis does not answer, so the old way answers every call, and none is compared: %s", error
                )
            return
        except (ValueError, TypeError, KeyError) as error:
            logger.error("%s or %s cannot be read, so the old way answers: %s", ANSWERS, BACK, error)
            self._read_at = -FRESH
            return
        if self._was_said:
            self._was_said = False
            logger.warning("Redis answers again")
        if shares != self._shares:
            logger.warning("shadow=%g canary=%g from now on (%s)", shares.shadow, shares.canary, self._program)
        self._shares, self._read_at = shares, time.monotonic()
        self._changed({**found, **self._unsaid})

    def _say(self) -> None:
        for name, why in list(self._unsaid.items()):
            text = json.dumps({"why": why, "at": server_time(self._client)})
            self._client.hset(BACK, f"{self._program} {name}", text)
            self._client.expire(BACK, KEPT)
            del self._unsaid[name]
        if (now := time.monotonic()) < self._tell_at:
            return
        self._tell_at = now + TOLD_EVERY
        if (text := self._verdict()) == self._told:
            return
        at = server_time(self._client)
        if not self._told:  # Once for each process.
            known = self._client.hgetall(VERDICTS).items()
            if old := [name for name, kept in known if json.loads(kept)["at"] < at - VERDICT_KEPT]:
                self._client.hdel(VERDICTS, *old)
        self._client.hset(VERDICTS, self._process, json.dumps({"at": at, "verdict": text}))
        self._client.expire(VERDICTS, VERDICT_KEPT)
        self._told = text
