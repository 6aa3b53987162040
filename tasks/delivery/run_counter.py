"""Counts the runs of an envelope that comes back, so that one that kills its process is noticed.

The first run is unwatched and costs nothing: its message says by ``redelivered`` that it comes back. When an envelope
comes back without having answered, a process died with it, or it was taken by one that died: from then on each run is
counted, each item is noted before it runs and its outcome is kept after it, so the killer is known by name and its
neighbours run once more at most.

Before the run that would be the last it waits until no other such runs beside it (poison_isolation.py).

A worker that is told to stop takes its processes down itself. It says so first (:func:`pardon`), and nobody is blamed.
One that finds that its message went to another while it lives, for whatever reason, says so too, and at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from graft.config import keys, lua
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.config.transport.qos import AGAIN
from graft.tasks.delivery import cancellation, poison_isolation
from graft.tasks.delivery.cancellation import NOTHING, Cancelled
from graft.tasks.envelope import Child
from graft.tasks.messages.message_format import MESSAGE_TTL

RUN_KEY: Final = keys.RUN
BEGIN: Final = lua.load(__file__, "begin_run")
PARDON: Final = lua.load(__file__, "pardon_run")


@dataclass(frozen=True)
class Delivery:
    """What is known when an envelope arrives. ``run`` counts from 1."""

    run: int
    cancelled: Cancelled = NOTHING
    starts: dict[int, int] = field(default_factory=dict)
    blamed: int | None = None
    poisoned: bool = False
    children: tuple[Child, ...] = ()
    deaths: int = 0

    @property
    def is_watched(self) -> bool:
        return self.run > 1

    def kills(self, position: int) -> int:
        """How many processes died while the item ran. The unwatched first run is blamed on the first killer found."""
        return self.starts.get(position, 0) + (1 if position == self.blamed else 0)

    def is_dead(self, position: int, limit: int) -> bool:
        """Whether the item has used up its runs; once one item has, its neighbours get a single death each."""
        if limit == 1 and self.deaths:
            return True  # Nothing may run twice, and nobody knows what the unwatched first run had begun.
        return self.kills(position) >= (1 if self.poisoned else limit)


def is_redelivered(request: Any) -> bool:
    """Whether the message of *request* was with a process before that was lost."""
    return bool((request.delivery_info or {}).get("redelivered"))


def was_returned(request: Any) -> bool:
    """Whether the message of *request* was with a process before, for whatever reason it went back."""
    info = (request.properties or {}).get("delivery_info") or {}
    return is_redelivered(request) or bool(info.get(AGAIN))


def asks_redis(batch: str, is_redelivered: bool, run_limit: int) -> bool:
    """Whether :meth:`Runs.begin` has to ask Redis."""
    return is_redelivered or run_limit == 1 or cancellation.may_be_cancelled(batch)


class Runs:
    """The record of one envelope's runs in Redis, under its id and the number of its retries."""

    def __init__(self, envelope_id: str, retries: int, client: Any = None, *, delivery: str = "") -> None:
        self.name = (envelope_id, retries)
        self.delivery = delivery
        self.key = f"{RUN_KEY}{envelope_id}:{retries}"
        self.done_key = f"{self.key}:done"
        self.client = client or shared()
        self.is_on_record = False

    def begin(
        self, batch: str, positions: Sequence[int], *, is_redelivered: bool, run_limit: int
    ) -> tuple[Delivery, dict[int, tuple[bool, bytes]]]:
        """Count this run; the delivery, and the outcomes that earlier watched runs have kept.

        Where an item may run more than once, its first run need not be on record: a message that comes back says itself
        that a process was lost with it.

        Raises:
            NotAloneError: one more death would be its last, and another of that kind runs in this worker; not counted.
        """
        cancelled = cancellation.of_envelope(batch, self.name[0], positions, self.client)
        if not is_redelivered and run_limit > 1:
            return Delivery(1, cancelled), {}
        self.is_on_record = True
        earlier = int(run_limit > 1)  # Runs before the first that is on record.
        run = int(BEGIN([self.key], [MESSAGE_TTL, poison_isolation.deaths(), earlier, self.delivery], self.client))
        if not run:
            poison_isolation.enter(self.name[0])
            run = int(BEGIN([self.key], [MESSAGE_TTL, math.inf, earlier, self.delivery], self.client))
        if run == 1:
            return Delivery(run, cancelled), {}
        return self._watched(run, cancelled, positions)

    def _watched(
        self, run: int, cancelled: Cancelled, positions: Sequence[int]
    ) -> tuple[Delivery, dict[int, tuple[bool, bytes]]]:
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hgetall(self.key)
            pipe.hgetall(self.done_key)
            pipe.hdel(self.key, "current")
            record, kept, _ = pipe.execute()
        done = {int(position): (frame[:1] == b"+", frame[1:]) for position, frame in kept.items()}
        starts = {
            int(name[6:]): int(count)
            for name, count in record.items()
            if name.startswith(b"start:") and int(count) and int(name[6:]) not in done
        }
        deaths = run - 1 - int(record.get(b"pardons", 0))
        if len(positions) == 1:  # Nothing to find out: every run was this item's.
            starts = {positions[0]: deaths} if deaths and positions[0] not in done else {}
            return Delivery(run, cancelled, starts), done
        blamed = int(record[b"blamed"]) if b"blamed" in record else None
        if blamed is None and deaths > sum(starts.values()):  # One of them was of the unwatched run.
            blamed = min(starts, default=None)
        if blamed is not None and b"blamed" not in record:
            self.client.hset(self.key, "blamed", blamed)
        children = _children(record.get(b"children"))
        return Delivery(run, cancelled, starts, blamed, b"poisoned" in record, children, deaths), done

    def starting(self, position: int) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hincrby(self.key, f"start:{position}", 1)
            pipe.hset(self.key, mapping={"current": position, "holder": self.delivery})
            pipe.execute()

    def postponed(self, position: int) -> None:
        """The item that was starting has not begun."""
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hincrby(self.key, f"start:{position}", -1)
            pipe.hdel(self.key, "current")
            pipe.execute()

    def finished(self, position: int, frame: tuple[bool, bytes]) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hset(self.done_key, str(position), (b"+" if frame[0] else b"-") + frame[1])
            pipe.expire(self.done_key, MESSAGE_TTL)
            pipe.hdel(self.key, "current")
            pipe.execute()

    def note_children(self, children: Sequence[Child]) -> None:
        """Remember which envelopes items of this one went into, should it be run again."""
        self.client.hset(self.key, "children", json.dumps(children))

    def mark_poisoned(self) -> None:
        self.client.hset(self.key, "poisoned", 1)

    def survived(self) -> None:
        """Note that this run's process goes on, though its message goes back: no death."""
        pardon([(*self.name, self.delivery)], self.client)

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of the record."""
        return self.key, self.done_key

    def close(self) -> None:
        """Drop the record."""
        with self.client.pipeline(transaction=False) as pipe:
            self.forget(pipe)
            pipe.execute()

    def forget(self, pipe: Any, *others: str) -> None:
        """Drop the record, and *others*, on the caller's pipeline."""
        pipe.delete(*self.keys, *others)


def delivery_of(request: Any) -> str:
    """The tag of the delivery that *request* is the run of; "" where it has none."""
    return str((getattr(request, "properties", None) or {}).get("delivery_tag") or "")


def pardon(runs: Iterable[tuple[str, int, str]], client: Any) -> None:
    """Have runs not count as deaths, each given by the envelope's id, the number of retries, and its delivery.

    To pardon a delivery twice changes nothing; one without a tag cannot be told from another.
    """
    for envelope_id, retries, delivery in runs:
        # A first run is on record from now on, for as long as its message may take to come back.
        PARDON([f"{RUN_KEY}{envelope_id}:{retries}"], [int(10 * settings().visibility_timeout), delivery], client)


def _children(text: bytes | None) -> tuple[Child, ...]:
    return tuple((envelope_id, tuple(positions)) for envelope_id, positions in json.loads(text or b"[]"))
