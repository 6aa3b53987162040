"""The record of a durable batch in Redis: what it is, how far it has come, and the keys around it.

    graft:durable:ID           a hash: callable, counts  graft:durable:ID:plan      the sealed options
    graft:durable:ID:items     pages of items            graft:durable:ID:pages     the item that each page begins with
    graft:durable:ID:blocks    outcomes, as they came    graft:durable:ID:index     which block has an item
    graft:durable:ID:done      a bit for each item       graft:durable:ID:failed    the same for those that have failed
    graft:durable:ID:sent      envelopes under way       graft:durable:ID:keys      digests of the items' keys
    graft:durable:name:NAME    the id of the batch with that name
    graft:durable:all, :open   ids of all batches, and of those to feed, by time
    graft:durable:feeder       the lease of whoever feeds (feeder_lease.py)

Every key expires ``GRAFT_BATCH_TTL`` after the batch's end, and while it is open unless a feeder renews it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from graft.config import keys, lua
from graft.config.deployment import settings
from graft.config.redis_client import server_time, shared
from graft.tasks.delivery import cancellation
from graft.tasks.durable.positions import runs_in
from graft.tasks.errors import TaskQueueError, UnknownBatchError

RECORD: Final = keys.DURABLE
NAME: Final = f"{RECORD}name:"
ALL: Final = f"{RECORD}all"
OPEN: Final = f"{RECORD}open"
PARTS: Final = ("done", "failed", "blocks", "index", "sent", "items", "pages", "plan", "keys")
LONGEST_NAME: Final = 200

RERUN: Final = lua.load(__file__, "rerun")

State = Literal["later", "running", "paused", "cancelled", "succeeded", "failed"]


@dataclass(frozen=True)
class BatchKeys:
    """The keys of one batch."""

    id: str
    name: str = ""

    @property
    def record(self) -> str:
        return RECORD + self.id

    @property
    def named(self) -> str:
        """The key of its name; the record once more where it has none."""
        return NAME + self.name if self.name else self.record

    def part(self, name: str) -> str:
        return f"{RECORD}{self.id}:{name}"

    def parts(self, *names: str) -> list[str]:
        return [self.part(name) for name in names]

    @property
    def every(self) -> list[str]:
        """All of them."""
        return [self.record, *self.parts(*PARTS), *([self.named] if self.name else [])]


@dataclass(frozen=True)
class BatchRecord:
    """A durable batch as its record says. Times are Redis's, in seconds since the epoch, 0.0 before they come.

    ``callable`` is a digest of the callable, ``input`` one of the items. ``sent`` counts the items without an outcome
    whose envelopes have left. ``due`` is when it may begin, if it was submitted for later. ``now`` is when the record
    was read.
    """

    id: str
    name: str
    function: str
    queue: str
    callable: str
    input: str
    total: int
    done: int
    failed: int
    retries: int
    envelopes: int
    sent: int
    item_bytes: int
    kept_bytes: int
    arrived: int
    generation: int
    created: float
    due: float
    ended: float
    now: float
    is_paused: bool
    is_cancelled: bool
    fatal: bytes

    @property
    def keys(self) -> BatchKeys:
        return BatchKeys(self.id, self.name)

    @property
    def state(self) -> State:
        if self.ended:
            return "failed" if self.failed or self.fatal else "succeeded"
        if self.is_cancelled:
            return "cancelled"
        if self.is_paused:
            return "paused"
        return "later" if self.due > self.now else "running"

    @property
    def seconds(self) -> float:
        """Seconds from when it was submitted, or was due, until its end, or until now."""
        return max(0.0, (self.ended or self.now) - max(self.created, self.due))


def unknown(name: str) -> UnknownBatchError:
    """The error for a batch that Redis does not know."""
    return UnknownBatchError(
        f"no durable batch has the id or name {name!r}: it was not submitted with durable=True or name=, was "
        f"forgotten, or has expired (GRAFT_BATCH_TTL={settings().batch_ttl:g} s after its end)"
    )


def checked_name(name: str) -> str:
    """*name*, if a batch can have it.

    Raises:
        TypeError: not a text.
        ValueError: empty, too long, or with characters that a terminal would obey.
    """
    if not isinstance(name, str):
        raise TypeError(f"name={name!r} must be a text")
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError(f"name={name!r:.250} must be 1 to {LONGEST_NAME} printable characters")
    return name


def id_of(name: str, client: Any = None) -> str:
    """The id of the batch that is called *name*, or *name* itself where none is."""
    found = (client or shared()).get(NAME + name)
    return found.decode() if found else name


def read(batch_id: str, client: Any = None) -> BatchRecord:
    """The record of a batch.

    Raises:
        UnknownBatchError: there is none, or its caller has not spooled all of it.
    """
    found = read_all([batch_id], client)
    if not found:
        raise unknown(batch_id)
    return found[0]


def read_all(ids: Sequence[str], client: Any = None) -> list[BatchRecord]:
    """The records of those batches of *ids* that are there. One round trip."""
    client = client or shared()
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        for batch_id in ids:
            pipe.hgetall(RECORD + batch_id)
            pipe.hvals(BatchKeys(batch_id).part("sent"))
            pipe.get(cancellation.CANCEL_KEY + batch_id)
        (seconds, micros), *found = pipe.execute()
    now = seconds + micros / 1e6
    return [
        _read(batch_id, fields, sent, flag, now)
        for batch_id, fields, sent, flag in zip(ids, found[::3], found[1::3], found[2::3], strict=True)
        if b"total" in fields
    ]


def _read(batch_id: str, fields: dict[bytes, bytes], sent: list[bytes], flag: bytes | None, now: float) -> BatchRecord:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode("utf-8", "replace")

    def number(name: bytes) -> int:
        return int(fields.get(name, 0))

    return BatchRecord(
        id=batch_id, name=text(b"name"), function=text(b"function"), queue=text(b"queue"), callable=text(b"callable"),
        input=text(b"input"), total=number(b"total"), done=number(b"done"),
        failed=number(b"failed"), retries=number(b"retries"), envelopes=number(b"envelopes"),
        sent=sum(last + 1 - first for runs in sent for first, last in runs_in(runs.decode())),
        item_bytes=number(b"bytes"), kept_bytes=number(b"kept_bytes"), arrived=number(b"arrived"),
        generation=number(b"generation"), created=float(text(b"created") or 0), due=float(text(b"due") or 0),
        ended=float(text(b"ended") or 0),
        now=now, is_paused=b"paused" in fields, is_cancelled=cancellation.is_whole(flag),
        fatal=fields.get(b"fatal", b""),
    )  # fmt: skip


def every(client: Any = None) -> list[BatchRecord]:
    """All batches that there are, the oldest first."""
    client = client or shared()
    return read_all([one.decode() for one in client.zrange(ALL, 0, -1)], client)


def prune(client: Any) -> int:
    """Drop the ids of batches that have expired; how many."""
    ids = [one.decode() for one in client.zrange(ALL, 0, -1)]
    with client.pipeline(transaction=False) as pipe:
        for batch_id in ids:
            pipe.exists(RECORD + batch_id)
        gone = [batch_id for batch_id, exists in zip(ids, pipe.execute(), strict=True) if not exists]
    return int(client.zrem(ALL, *gone)) if gone else 0


def rerun(record: BatchRecord, client: Any = None) -> int:
    """Have the failed items of a batch that has ended run again; how many.

    Raises:
        UnknownBatchError: the batch is gone.
        TaskQueueError: it has not ended.
    """
    client = client or shared()
    batch, flag = record.keys, cancellation.CANCEL_KEY + record.id
    count = int(RERUN([batch.record, *batch.parts("done", "failed"), OPEN, flag], [record.id], client))
    if count == -1:
        raise unknown(record.id)
    if count == -2:
        raise TaskQueueError(
            f"batch {record.name or record.id} still runs ({record.done} of {record.total} items done): its failed "
            "items run again once it has ended; wait for it, or cancel it first"
        )
    renew([record], client)
    return count


def pause(record: BatchRecord, client: Any = None) -> None:
    """Have nothing more of the batch sent."""
    (client or shared()).hset(record.keys.record, "paused", 1)


def go_on(record: BatchRecord, client: Any = None) -> None:
    """End the pause."""
    (client or shared()).hdel(record.keys.record, "paused")


def cancel(record: BatchRecord, *, running: bool = False) -> None:
    """Have nothing more of the batch begin, nor be sent; end what runs, too, if *running*."""
    cancellation.cancel(record.id, settings().batch_ttl, running=running)
    if record.due > record.now:  # Whoever feeds is to end it now.
        shared().zadd(OPEN, {record.id: record.now}, xx=True)


def forget(record: BatchRecord, client: Any = None) -> None:
    """Remove the batch; what of it has not begun never does."""
    client = client or shared()
    if not record.ended:
        cancel(record)
    drop(record.keys, client)


def drop(batch: BatchKeys, client: Any) -> None:
    """Remove the keys of a batch, and its name where no other has it."""
    has_name = bool(batch.name) and id_of(batch.name, client) == batch.id
    with client.pipeline(transaction=True) as pipe:
        pipe.unlink(*(batch if has_name else BatchKeys(batch.id)).every)
        pipe.zrem(ALL, batch.id)
        pipe.zrem(OPEN, batch.id)
        pipe.execute()


def renew(records: Iterable[BatchRecord], client: Any = None) -> None:
    """Have the batches expire a whole ``batch_ttl`` from now."""
    client, ttl = client or shared(), int(settings().batch_ttl)
    with client.pipeline(transaction=False) as pipe:
        for key in (ALL, OPEN):
            pipe.ttl(key)
        # They stay as long as the batch that waits longest for its time.
        shared_keys = [key for key, left in zip((ALL, OPEN), pipe.execute(), strict=True) if left < ttl]
        for key in [*shared_keys, *(key for record in records for key in record.keys.every)]:
            pipe.expire(key, ttl)
        pipe.execute()


def to_feed(client: Any) -> list[str]:
    """The ids of the batches to feed whose time has come, the first ones first."""
    return [one.decode() for one in client.zrange(OPEN, "-inf", server_time(client), byscore=True)]


def now(client: Any = None) -> float:
    return server_time(client or shared())
