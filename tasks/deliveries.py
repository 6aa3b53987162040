"""Counts the runs of an envelope before its items run, so that one that kills its process is noticed.

The first run is unwatched and costs one round trip. When an envelope comes back without having answered, a process
died with it: from then on each item is noted before it runs and its outcome is kept after it, so the killer is known
by name and its neighbours run once more at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from graft.config.redis_client import shared

RUN_KEY: Final = "graft:run:"
CANCEL_KEY: Final = "graft:cancel:"
TTL: Final = 7 * 86400  # Outlives every redelivery of the message it counts.


@dataclass(frozen=True)
class Delivery:
    """What is known when an envelope arrives. ``run`` counts from 1."""

    run: int
    cancelled: bool
    starts: dict[int, int] = field(default_factory=dict)
    blamed: int | None = None
    poisoned: bool = False

    @property
    def is_watched(self) -> bool:
        return self.run > 1

    def kills(self, position: int) -> int:
        """How many processes died while the item ran. The unwatched first run is blamed on the first killer found."""
        return self.starts.get(position, 0) + (1 if position == self.blamed else 0)

    def is_dead(self, position: int, limit: int) -> bool:
        """Whether the item has used up its runs; once one item has, its neighbours get a single death each."""
        return self.kills(position) >= (1 if self.poisoned else limit)


class Runs:
    """The record of one envelope's runs in Redis, under its id and the number of its retries."""

    def __init__(self, envelope_id: str, retries: int, client: Any = None) -> None:
        self.key = f"{RUN_KEY}{envelope_id}:{retries}"
        self.done_key = f"{self.key}:done"
        self.client = client or shared()

    def begin(self, batch: str, positions: Sequence[int]) -> tuple[Delivery, dict[int, tuple[bool, bytes]]]:
        """Count this run; the delivery, and the outcomes that earlier watched runs have kept."""
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hincrby(self.key, "runs", 1)
            pipe.expire(self.key, TTL)
            pipe.exists(CANCEL_KEY + batch)
            run, _, cancelled = pipe.execute()
        if run == 1:
            return Delivery(run, bool(cancelled)), {}
        return self._watched(int(run), bool(cancelled), positions)

    def _watched(
        self, run: int, cancelled: bool, positions: Sequence[int]
    ) -> tuple[Delivery, dict[int, tuple[bool, bytes]]]:
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hgetall(self.key)
            pipe.hgetall(self.done_key)
            record, kept = pipe.execute()
        done = {int(position): (frame[:1] == b"+", frame[1:]) for position, frame in kept.items()}
        starts = {
            int(name[6:]): int(count)
            for name, count in record.items()
            if name.startswith(b"start:") and int(name[6:]) not in done
        }
        if len(positions) == 1:  # Nothing to find out: every run was this item's.
            starts = {positions[0]: run - 1} if positions[0] not in done else {}
            return Delivery(run, cancelled, starts), done
        blamed = int(record[b"blamed"]) if b"blamed" in record else min(starts, default=None)
        if blamed is not None and b"blamed" not in record:
            self.client.hset(self.key, "blamed", blamed)
        return Delivery(run, cancelled, starts, blamed, b"poisoned" in record), done

    def starting(self, position: int) -> None:
        self.client.hincrby(self.key, f"start:{position}", 1)

    def finished(self, position: int, frame: tuple[bool, bytes]) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hset(self.done_key, str(position), (b"+" if frame[0] else b"-") + frame[1])
            pipe.expire(self.done_key, TTL)
            pipe.execute()

    def mark_poisoned(self) -> None:
        self.client.hset(self.key, "poisoned", 1)

    def forget(self, pipe: Any) -> None:
        """Drop the record, on the caller's pipeline."""
        pipe.delete(self.key, self.done_key)


def cancel(batch: str, ttl: float) -> None:
    """Raise the flag that keeps what has not begun of *batch* from running, on every worker, across restarts."""
    shared().set(CANCEL_KEY + batch, 1, ex=max(1, int(ttl)))


def is_cancelled(batch: str) -> bool:
    return bool(shared().exists(CANCEL_KEY + batch))
