"""Hands a batch over to the deployment: its items go to Redis page by page, and from the last step on it is there.

claim the id (and the name) ── page ── page ── … ── commit
        a caller that ends before commit leaves nothing: its pages expire, and whoever has the name begins anew
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from types import CodeType, FunctionType
from typing import Any, Final, Literal

import redis

from graft.config import lua
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.callables.references import FunctionRef
from graft.tasks.durable import outcomes
from graft.tasks.durable import record as records
from graft.tasks.durable.pages import PAGE_BYTES, PAGE_ITEMS, Page
from graft.tasks.durable.record import ALL, OPEN, RECORD, BatchKeys, BatchRecord
from graft.tasks.errors import BatchExistsError, PayloadTooLargeError, TaskQueueError
from graft.tasks.feeding.plan import Plan
from graft.tasks.ids import new_id
from graft.tasks.results.subscriber import unavailable

logger = logging.getLogger(__name__)

SPOOL_TTL: Final = 120  # Seconds that the pages of a caller live which has ended, or writes no more of them.
SILENCE: Final = 5.0  # Seconds without a page after which another caller may have the name.
LOOK_AGAIN: Final = 0.2

CLAIM: Final = lua.load(__file__, "claim")
SPOOL: Final = lua.load(__file__, "spool")
COMMIT: Final = lua.load(__file__, "commit")

IfExists = Literal["attach", "restart", "error"]
BadItems = Literal["keep", "raise"]
Resume = Literal["failed", "force"]


@dataclass
class Packer:
    """Makes pages of items, and a digest of what they are; ``refused`` are the items that cannot travel."""

    raises: bool
    total: int = 0
    refused: list[tuple[int, TaskQueueError]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sha = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._sha.hexdigest()

    def pages(self, items: Iterable[Any]) -> Iterator[tuple[int, Page]]:
        """The pages, each with the position that it begins at."""
        rest = iter(items)
        while chunk := list(islice(rest, PAGE_ITEMS)):
            yield from self._pages(chunk)

    def _pages(self, chunk: list[Any]) -> Iterator[tuple[int, Page]]:
        size = codec.plain_size(chunk)
        if size is not None and size + 3 * len(chunk) > PAGE_BYTES and len(chunk) > 1:
            half = len(chunk) // 2
            yield from self._pages(chunk[:half])
            yield from self._pages(chunk[half:])
        elif size is not None and size <= min(PAGE_BYTES, settings().item_limit):
            self._sha.update(repr(chunk).encode("utf-8", "surrogatepass"))
            first, self.total = self.total, self.total + len(chunk)
            yield first, Page(range(first, self.total), chunk, is_plain=True)
        else:
            yield from self._pickled(chunk)

    def _pickled(self, chunk: list[Any]) -> Iterator[tuple[int, Page]]:
        first, room = self.total, PAGE_BYTES
        positions: list[int] = []
        frames: list[bytes] = []
        limit = settings().item_limit
        # What is equal may pickle differently: it depends on which of its parts are one and the same.
        is_plain = codec.plain_size(chunk, codec.CONTAINERS) is not None
        if is_plain:
            self._sha.update(repr(chunk).encode("utf-8", "surrogatepass"))
        for item in chunk:
            position, self.total = self.total, self.total + 1
            try:
                frame = codec.dump_item(item, limit, "item", position)
            except TaskQueueError as error:
                if self.raises:
                    raise
                self.refused.append((position, error))
                self._sha.update(b"refused")
                continue
            if not is_plain:
                self._sha.update(frame)
            if frames and len(frame) > room:
                yield first, Page(positions, frames, is_plain=False)
                first, positions, frames, room = position, [], [], PAGE_BYTES
            positions.append(position)
            frames.append(frame)
            room -= len(frame)
        if frames:
            yield first, Page(positions, frames, is_plain=False)


def fingerprint(func: Callable[..., Any] | None, ref: FunctionRef) -> str:
    """A digest of what *func* does: of its code, where it is a plain function, else of the pickle that travels."""
    sha = hashlib.sha256(f"{ref.how}:{ref.name}:".encode())
    if type(func) is FunctionType:
        _add_code(sha, func.__code__)
    else:
        sha.update(ref.payload)
    return sha.hexdigest()


def _add_code(sha: Any, code: CodeType) -> None:
    """Not its file and its lines, which change while it stays the same."""
    sha.update(code.co_code)
    sha.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(sha, constant)
        else:
            is_set = isinstance(constant, frozenset)
            sha.update(repr(sorted(map(repr, constant)) if is_set else constant).encode("utf-8", "surrogatepass"))


def spool(
    plan: Plan,
    func: Callable[..., Any] | None,
    items: Callable[[], Iterable[Any]],
    *,
    name: str,
    if_exists: IfExists = "attach",
    bad_items: BadItems = "keep",
    resume: Resume | None = None,
) -> BatchRecord:
    """The record of a batch that is the deployment's when this returns: a new one, or the one that has the name.

    *resume*: what of that one has failed runs again, if it has ended. *items* gives the items, from the beginning each
    time. Blocks for a round trip for each megabyte of them.

    Raises:
        BatchExistsError: the name is another batch's.
        PayloadTooLargeError: the items take more than ``spool_limit`` bytes.
        UnpicklableError: an item cannot travel, and *bad_items* is ``raise``.
        BrokerUnavailable: Redis does not answer, or is full.
    """
    try:
        return _spool(plan, func, items, name, if_exists, bad_items, resume)
    except (redis.RedisError, OSError) as error:
        raise unavailable(error) from error


def _spool(
    plan: Plan, func: Callable[..., Any] | None, items: Callable[[], Iterable[Any]], name: str,
    if_exists: IfExists, bad_items: BadItems, resume: Resume | None,
) -> BatchRecord:  # fmt: skip
    options = plan.options
    client, digest = shared(), fingerprint(func, options.function)
    batch = BatchKeys(new_id(), name)
    fields: dict[str, str | int] = {
        "function": options.function.name, "queue": options.queue, "callable": digest,
    } | ({"then": 1} if plan.then else {})  # fmt: skip
    keys, sealed = [batch.record, batch.named, batch.part("plan")], plan.sealed(batch.id)
    flat: list[str | int] = [part for pair in fields.items() for part in pair]
    while True:
        found, state = CLAIM(keys, [batch.id, name, RECORD, SPOOL_TTL, SILENCE, sealed, *flat], client)
        if state == b"begun":
            break
        if state == b"spooling":
            time.sleep(LOOK_AGAIN)
            continue
        other = records.read_all([found.decode()], client)
        if not other:
            continue
        if if_exists == "restart":
            records.forget(other[0], client)
            continue
        attached = _attached(other[0], plan, digest, items, if_exists, resume)
        return attached if resume is None else _resumed(attached, plan, digest, client)
    try:
        packer = Packer(raises=bad_items == "raise")
        for first, page in packer.pages(items()):
            _write(batch, first, page, client)
        _commit(batch, packer, client)
    except BaseException:
        with suppress(redis.RedisError, OSError):  # They expire.
            records.drop(batch, client)
        raise
    return records.read(batch.id, client)


def _attached(
    other: BatchRecord, plan: Plan, digest: str, items: Callable[[], Iterable[Any]], if_exists: IfExists,
    resume: Resume | None,
) -> BatchRecord:  # fmt: skip
    """*other*, if it is the same batch.

    Raises:
        BatchExistsError: it is not, or is not to be had.
    """
    remedy = f'graft.batch({other.name!r}) reads it as it is, if_exists="restart" forgets it and begins anew'
    if if_exists == "error":
        raise BatchExistsError(f"there is a batch with the name {other.name!r} already ({other.id}); {remedy}")
    if other.function != plan.options.function.name:
        raise BatchExistsError(
            f"the name {other.name!r} belongs to a batch of {other.function}, and not of {plan.options.function.name}; "
            f"take another name; {remedy}"
        )
    if other.callable != digest and resume != "force":
        raise BatchExistsError(
            f"{other.function} has been changed since the batch {other.name!r} was submitted, and its values are those "
            f'of the code of then; {remedy}, resume="force" keeps them and runs what has failed with the code of now'
        )
    packer = Packer(raises=False)
    for _ in packer.pages(items()):
        pass
    if packer.digest != other.input:
        raise BatchExistsError(
            f"the batch {other.name!r} has {other.total} other items than these {packer.total} (sets, and objects that "
            f"are pickled in another order, count as others); take another name; {remedy}"
        )
    return other


def _resumed(other: BatchRecord, plan: Plan, digest: str, client: Any) -> BatchRecord:
    """*other*, whose failed items run again as *plan* says if it has ended; one that runs just goes on."""
    if not other.ended or not (other.failed or other.fatal):
        records.go_on(other, client)
        return other
    with client.pipeline(transaction=True) as pipe:
        pipe.set(other.keys.part("plan"), plan.sealed(other.id), ex=int(settings().batch_ttl))
        pipe.hset(other.keys.record, "callable", digest)
        pipe.hset(other.keys.record, "then", 1) if plan.then else pipe.hdel(other.keys.record, "then")
        pipe.execute()
    records.rerun(other, client)
    return records.read(other.id, client)


def _write(batch: BatchKeys, first: int, page: Page, client: Any) -> None:
    limit = settings().spool_limit
    sealed = page.sealed(batch.id, first)
    result = SPOOL(
        [batch.record, *batch.parts("items", "pages"), batch.named, batch.part("plan")],
        [batch.id, first, sealed, limit, SPOOL_TTL],
        client,
    )
    if result == -1:
        raise _displaced(batch)
    if result == -2:
        raise PayloadTooLargeError(
            f"the items of the batch take more than {limit} bytes, with item {page.positions[0]} and those behind it; "
            "nothing was submitted: pass references to large items (a path, a key), submit several batches, or raise "
            "GRAFT_SPOOL_LIMIT"
        )


def _commit(batch: BatchKeys, packer: Packer, client: Any) -> None:
    if packer.refused:
        with client.pipeline(transaction=False) as pipe:
            for position, error in packer.refused:
                outcomes.keep_failed(pipe, batch.id, 0, [(position, position)], error)
            pipe.execute()
    keys = [batch.record, batch.named, ALL, OPEN, *batch.parts(*records.PARTS)]
    if not COMMIT(keys, [batch.id, packer.total, packer.digest, int(settings().batch_ttl)], client):
        raise _displaced(batch)


def _displaced(batch: BatchKeys) -> BatchExistsError:
    return BatchExistsError(
        f"another process has submitted a batch named {batch.name!r} since this one began, or this one wrote no page "
        f"for {SILENCE:g} s; nothing of it was submitted"
    )
