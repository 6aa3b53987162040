"""Values by key: a batch under a name whose input has changed runs the items that are new, and keeps the other values.

    first run     items ── a digest of each key, beside the batch
    second run    items ──┬─ the key has a value ──► its outcome is copied to the new batch, block by block
                          └─ new, failed, invalidated ──► a page of the new batch
                  commit: the name is the new batch's from here on, and the old one goes

Nothing of the values is unpickled on the way.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.durable.outcomes import BLOCKS, Block, keep_report
from graft.tasks.durable.pages import PAGE_ITEMS, Page, has_bit
from graft.tasks.durable.record import BatchKeys, BatchRecord
from graft.tasks.durable.sources import SourcePage
from graft.tasks.envelope import Report
from graft.tasks.errors import BatchExistsError

SIZE: Final = 16  # Bytes of the digest of a key.

Key = Callable[[Any], Any] | Literal["item"]
Invalidate = Callable[[Any], bool] | Collection[Any]


@dataclass(frozen=True)
class KeyRule:
    """How the key of an item is found, and which keys are to run again whatever is known of them."""

    key: Key
    invalidate: Invalidate | None = None

    def of(self, item: Any, position: int) -> Any:
        """The key of *item*.

        Raises:
            TypeError: the key is nothing that is the same in every process.
        """
        if self.key == "item":
            return item
        found = self.key(item)
        if codec.plain_size([found]) is None:
            raise TypeError(
                f"the key of item {position} is {found!r:.100}: it must be a text, bytes, a number, or a tuple of these"
            )
        return found

    def digest(self, key: Any) -> bytes:
        plain = codec.plain_size([key], codec.CONTAINERS) is not None
        limit = settings().item_limit
        text = repr(key).encode("utf-8", "surrogatepass") if plain else codec.dump_item(key, limit, "the key")
        return hashlib.sha256(text).digest()[:SIZE]

    def is_invalid(self, key: Any) -> bool:
        wanted = self.invalidate
        if wanted is None:
            return False
        return bool(wanted(key)) if callable(wanted) else key in wanted


@dataclass
class Checkpoint:
    """The values of *other*, if there is such a batch, for the items of a new one; and the keys of those."""

    rule: KeyRule
    other: BatchRecord | None = None
    _digests: bytearray = field(default_factory=bytearray)  # Of the new items, in their order.
    _known: dict[bytes, int] = field(default_factory=dict)  # Of the other's successes: where each is.
    _moves: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # From there to here.
    _carried: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, rule: KeyRule, other: BatchRecord, client: Any) -> Checkpoint:
        """What *other* has values for.

        Raises:
            BatchExistsError: it keeps no keys.
        """
        done, failed = (client.get(part) or b"" for part in other.keys.parts("done", "failed"))
        known: dict[bytes, int] = {}
        for at in range(0, other.total, PAGE_ITEMS):
            sealed = client.hget(other.keys.part("keys"), at)
            if sealed is None:
                raise BatchExistsError(
                    f"the batch {other.name!r} was submitted without key=, so it is not known which of its values "
                    'belong to which of these items; take another name, or if_exists="restart"'
                )
            digests = codec.unseal(_purpose(other.id, at), sealed)
            for position in range(at, at + len(digests) // SIZE):
                if has_bit(done, position) and not has_bit(failed, position):
                    known[digests[(position - at) * SIZE : (position - at + 1) * SIZE]] = position
        return cls(rule, other, _known=known)

    def watch(self, items: Iterable[Any]) -> Iterator[Any]:
        """*items*, the next ones of the batch, whose keys are noted as they pass."""
        for item in items:
            position = len(self._digests) // SIZE
            key = self.rule.of(item, position)
            digest = self.rule.digest(key)
            self._digests += digest
            if self._known and digest in self._known and not self.rule.is_invalid(key):
                self._moves[self._known[digest]].append(position)
                self._carried.add(position)
            yield item

    def left(self, page: Page | SourcePage) -> Page | SourcePage:
        """*page* with the items alone that are to run."""
        kept = [position for position in page.positions if position not in self._carried]
        return page if len(kept) == len(page.positions) else page.only(kept)

    def save(self, batch: BatchKeys, seconds: int, client: Any) -> None:
        """Keep the keys beside *batch*, and copy the values that there are."""
        with client.pipeline(transaction=False) as pipe:
            for at in range(0, len(self._digests) // SIZE, PAGE_ITEMS):
                content = bytes(self._digests[at * SIZE : (at + PAGE_ITEMS) * SIZE])
                pipe.hset(batch.part("keys"), at, codec.sealed(_purpose(batch.id, at), content))
            pipe.expire(batch.part("keys"), seconds)
            pipe.execute()
        if self.other is not None and self._moves:
            for report in self._reports(self.other, client):
                keep_report(client, batch.id, report)

    def _reports(self, other: BatchRecord, client: Any) -> Iterator[Report]:
        """The other's outcomes at their new positions."""
        for at in range(1, other.arrived + 1, BLOCKS):
            for kept in client.hmget(other.keys.part("blocks"), range(at, at + BLOCKS)):
                if kept is not None and (report := self._moved(Block.open(kept).report)) is not None:
                    yield report

    def _moved(self, report: Report) -> Report | None:
        found = [
            (position, value)
            for old, value in zip(report.positions, report.values, strict=True)
            if not report.packed or value[0]
            for position in self._moves.pop(old, ())  # The first that came is the outcome.
        ]
        if not found:
            return None
        found.sort(key=lambda pair: pair[0])
        positions, values = zip(*found, strict=True)
        return replace(report, positions=positions, values=values, busy=0.0, elapsed=0.0, retries=0, children=())


def _purpose(batch_id: str, first: int) -> str:
    return f"keys:{batch_id}:{first}"
