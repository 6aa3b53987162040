"""Feeds all durable batches of the deployment, while it holds the lease.

One process does at a time. What it knows is in Redis, so whoever comes after it goes on where it stopped.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from typing import Any, Final

import redis

from graft.config.redis_client import connect
from graft.tasks import codec
from graft.tasks.durable import record as records
from graft.tasks.durable.feeder_lease import RENEW_EVERY, FeederLease
from graft.tasks.durable.record import BatchRecord
from graft.tasks.envelope import error_frame
from graft.tasks.errors import EnvelopeError
from graft.tasks.feeding.conclusion import conclude
from graft.tasks.feeding.durable_sender import DurableSender
from graft.tasks.feeding.plan import Plan
from graft.tasks.sending.publisher import publisher

logger = logging.getLogger(__name__)

TURN: Final = 0.2  # Seconds between two looks at what there is to feed.
IDLE: Final = 10.0  # Seconds without an open batch after which the lease is given back.
STUCK: Final = 10.0  # Seconds with nothing under way after which a batch is read anew from its record.
AGAIN: Final = 2.0  # Seconds until a batch that could not be fed is tried again.
TRIM_EVERY: Final = 5.0
KEEP_EVERY: Final = 60.0  # Seconds between two renewals of the expiry of open batches.


class Feeder:
    """Feeds until it is stopped, has nothing to do, or has lost the lease."""

    def __init__(self, is_stopped: threading.Event) -> None:
        self._is_stopped = is_stopped
        self._senders: dict[str, DurableSender] = {}
        self._not_before: dict[str, float] = {}
        self._trimmed_at = self._kept_at = 0.0

    def run(self) -> None:
        """Take the lease, if it is free, and feed. Blocks."""
        with connect(client_name="graft-feeder") as client:
            lease = FeederLease.take(f"{platform.node()}/{os.getpid()}", client)
            if lease is None:
                return
            logger.info("this worker feeds the durable batches of the deployment")
            try:
                self._feed(lease, client)
            finally:
                for sender in self._senders.values():
                    sender.abandon()
                self._release(lease, client)

    def _release(self, lease: FeederLease, client: Any) -> None:
        try:
            lease.release(client)
        except (redis.RedisError, OSError) as error:
            logger.debug("the lease to feed ends by itself: %s", error)

    def _feed(self, lease: FeederLease, client: Any) -> None:
        renew_at, busy_at = 0.0, time.monotonic()
        is_failing = False
        while not self._is_stopped.wait(TURN):
            try:
                if time.monotonic() >= renew_at:
                    if not lease.renew(client):
                        logger.warning("another worker feeds the durable batches: this one was silent for too long")
                        return
                    renew_at = time.monotonic() + RENEW_EVERY
                if self._turn(lease, client):
                    busy_at = time.monotonic()
                elif time.monotonic() - busy_at > IDLE:
                    return
                is_failing = False
            except (redis.RedisError, OSError) as error:
                if not is_failing:
                    logger.warning("durable batches wait for Redis: %s", error)
                is_failing = True

    def _turn(self, lease: FeederLease, client: Any) -> bool:
        """Look after every open batch; whether there is one."""
        ids = records.to_feed(client)
        known = {record.id: record for record in records.read_all(ids, client)}
        for gone in set(ids) - known.keys():
            client.zrem(records.OPEN, gone)
        found = {record.id: record for record in known.values() if not record.ended}
        for batch_id in self._senders.keys() - found.keys():
            self._end(batch_id, client)
        for record in known.values():
            if record.ended:
                conclude(record, client)
            else:
                self._tend(record, lease, client)
        now = time.monotonic()
        if now - self._kept_at > KEEP_EVERY:
            self._kept_at = now
            records.renew(found.values(), client)
            records.prune(client)
        if now - self._trimmed_at > TRIM_EVERY:
            self._trimmed_at = now
            for sender in self._senders.values():
                sender.trim(client)
        return bool(known)

    def _tend(self, record: BatchRecord, lease: FeederLease, client: Any) -> None:
        sender = self._senders.get(record.id)
        if sender is not None and sender.receiver.record.generation != record.generation:
            self._drop(record.id)  # It has ended, and its failed items run again.
            sender = None
        if sender is not None and (sender.receiver.broken or self._is_stuck(sender, record)):
            logger.warning("batch %s is read anew from its record (%r)", record.id, sender.receiver.broken)
            self._drop(record.id)
            self._not_before[record.id] = time.monotonic() + (AGAIN if sender.receiver.broken else 0.0)
            sender = None
        if sender is None:
            if time.monotonic() < self._not_before.get(record.id, 0.0):
                return
            sender = self._adopted(record, lease, client)
            if sender is None:
                return
        sender.receiver.record = record
        sender.is_paused = record.is_paused
        if record.is_cancelled and not sender.is_finished:
            sender.cancel()
        sender.wake()

    def _adopted(self, record: BatchRecord, lease: FeederLease, client: Any) -> DurableSender | None:
        """The sender of a batch from now on; None where the batch cannot be fed at all."""
        try:
            options = Plan.read(record.keys, client).options
        except EnvelopeError as error:
            logger.error("durable batch %s cannot run: %s", record.id, error)
            _, frame = error_frame(error)
            fields = {"fatal": codec.sealed(f"fatal:{record.id}", frame), "ended": records.now(client)}
            client.hset(record.keys.record, mapping=fields)
            client.zrem(records.OPEN, record.id)
            return None
        sender = DurableSender(record, options, lease, client, publisher().wake)
        self._senders[record.id] = sender
        publisher().start(sender)
        return sender

    def _is_stuck(self, sender: DurableSender, record: BatchRecord) -> bool:
        """Whether nothing is under way that could still end the batch: Redis has come back without its last writes."""
        is_waiting = record.is_paused or record.sent or not sender.is_finished
        return not is_waiting and time.monotonic() - sender.idle_since > STUCK

    def _drop(self, batch_id: str) -> None:
        self._senders.pop(batch_id).abandon()

    def _end(self, batch_id: str, client: Any) -> None:
        """The batch has ended, or is gone."""
        sender = self._senders[batch_id]
        self._drop(batch_id)
        if found := records.read_all([batch_id], client):
            sender.receiver.record = found[0]
            sender.trim(client)
            records.renew(found, client)
