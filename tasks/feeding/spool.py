"""Hands a batch over to the deployment: its items go to Redis page by page, and from the last step on it is there.

claim the id (and the name) ── page ── page ── … ── commit
        a caller that ends before commit leaves nothing: its pages expire, and whoever has the name begins anew
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from types import CodeType, FunctionType
from typing import Any, Final, Literal

import redis

from graft.config import lua
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks.callables.references import FunctionRef
from graft.tasks.durable import outcomes
from graft.tasks.durable import record as records
from graft.tasks.durable.pages import Page
from graft.tasks.durable.record import ALL, OPEN, RECORD, BatchKeys, BatchRecord
from graft.tasks.durable.sources import Source, SourcePage
from graft.tasks.errors import BatchExistsError, PayloadTooLargeError
from graft.tasks.feeding.checkpoint import Checkpoint, KeyRule
from graft.tasks.feeding.packer import BadItems, Input, Packer, SourcePacker
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
Resume = Literal["failed", "force"]


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
    keys: KeyRule | None = None,
    source: Source | None = None,
) -> BatchRecord:
    """The record of a batch that is the deployment's when this returns: a new one, or the one that has the name.

    *resume*: what of that one has failed runs again, if it has ended. *keys*: with other items a new batch takes the
    name over, and the values of those that have the same keys. *items* gives the items, from the beginning each time.
    Blocks for a round trip for each megabyte of them.

    Raises:
        BatchExistsError: the name is another batch's.
        PayloadTooLargeError: the items take more than ``spool_limit`` bytes.
        UnpicklableError: an item cannot travel, and *bad_items* is ``raise``.
        BrokerUnavailable: Redis does not answer, or is full.
    """
    try:
        return _spool(plan, func, Input(items, bad_items, source), name, if_exists, resume, keys)
    except (redis.RedisError, OSError) as error:
        raise unavailable(error) from error


def _spool(
    plan: Plan, func: Callable[..., Any] | None, items: Input, name: str, if_exists: IfExists, resume: Resume | None,
    keys: KeyRule | None,
) -> BatchRecord:  # fmt: skip
    client, digest = shared(), fingerprint(func, plan.options.function)
    batch = BatchKeys(new_id(), name)
    while True:
        found, state = _claim(batch, plan, digest, client)
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
        is_same = _check_is_same(other[0], plan, digest, items, if_exists, resume, keys)
        if is_same:
            return other[0] if resume is None else _resumed(other[0], plan, digest, client)
        assert keys is not None
        batch = BatchKeys(batch.id)  # The name is the other's until the end.
        _claim(batch, plan, digest, client)
        _fill(batch, plan, items, Checkpoint.of(keys, other[0], client), client)
        records.forget(other[0], client)
        return records.read(batch.id, client)
    _fill(batch, plan, items, None if keys is None else Checkpoint(keys), client)
    return records.read(batch.id, client)


def _claim(batch: BatchKeys, plan: Plan, digest: str, client: Any) -> tuple[bytes, bytes]:
    options = plan.options
    fields: dict[str, str | int] = {
        "function": options.function.name, "queue": options.queue, "callable": digest,
    } | ({"then": 1} if plan.then else {})  # fmt: skip
    flat: list[str | int] = [part for pair in fields.items() for part in pair]
    arguments = [batch.id, batch.name, RECORD, SPOOL_TTL, SILENCE, plan.sealed(batch.id), *flat]
    found, state = CLAIM([batch.record, batch.named, batch.part("plan")], arguments, client)
    return found, state


def _fill(
    batch: BatchKeys, plan: Plan, items: Input, checkpoint: Checkpoint | None, client: Any
) -> None:  # fmt: skip
    """Write the items of a batch that was claimed, and make it the deployment's."""
    try:
        packer = items.packer()
        for first, page in packer.pages(None if checkpoint is None else checkpoint.watch):
            left = page if checkpoint is None else checkpoint.left(page)
            if left.positions:
                _write(batch, first, left, client)
        if checkpoint is not None:
            checkpoint.save(batch, SPOOL_TTL, client)
        _commit(batch, packer, plan.options.due, None if checkpoint is None else checkpoint.other, client)
    except BaseException:
        with suppress(redis.RedisError, OSError):  # They expire.
            records.drop(batch, client)
        raise


def _check_is_same(
    other: BatchRecord, plan: Plan, digest: str, items: Input, if_exists: IfExists, resume: Resume | None,
    keys: KeyRule | None,
) -> bool:  # fmt: skip
    """Whether *other* is the same batch; False where a new one may take it over, by *keys*.

    Raises:
        BatchExistsError: neither of these.
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
    packer = replace(items, bad_items="keep").packer()
    for _ in packer.pages(None):
        pass
    if packer.digest == other.input and (keys is None or keys.invalidate is None):
        return True
    if keys is not None and not other.ended:
        raise BatchExistsError(
            f"the batch {other.name!r} still runs ({other.done} of {other.total} items done), and these items are "
            f"others: submit them when it has ended, or cancel it; {remedy}"
        )
    if keys is None:
        raise BatchExistsError(
            f"the batch {other.name!r} has {other.total} other items than these {packer.total} (sets, and objects that "
            f"are pickled in another order, count as others); take another name, or say by key= which items are the "
            f"same ones; {remedy}"
        )
    return False


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


def _write(batch: BatchKeys, first: int, page: Page | SourcePage, client: Any) -> None:
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


def _commit(
    batch: BatchKeys, packer: Packer | SourcePacker, due: float | None, before: BatchRecord | None, client: Any
) -> None:
    if packer.refused:
        with client.pipeline(transaction=False) as pipe:
            for position, error in packer.refused:
                outcomes.keep_failed(pipe, batch.id, 0, [(position, position)], error)
            pipe.execute()
    if before is not None:
        batch = BatchKeys(batch.id, before.name)
        client.hset(batch.record, "name", before.name)
    keys = [batch.record, batch.named, ALL, OPEN, *batch.parts(*records.PARTS)]
    ttl, taken = int(settings().batch_ttl), before.id if before is not None else ""
    if not COMMIT(keys, [batch.id, packer.total, packer.digest, ttl, due or 0, taken], client):
        raise _displaced(batch)


def _displaced(batch: BatchKeys) -> BatchExistsError:
    return BatchExistsError(
        f"another process has submitted a batch named {batch.name!r} since this one began, or this one wrote no page "
        f"for {SILENCE:g} s; nothing of it was submitted"
    )
