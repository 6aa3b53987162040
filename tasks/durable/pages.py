"""The items of a durable batch: signed pages in Redis, written by the caller and read by whoever feeds.

Items that are all plain values are one pickle for the page; others are a pickle each. An item that cannot travel is in
no page.
"""

from __future__ import annotations

import logging
import pickle
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from graft.config.deployment import part, settings
from graft.tasks import codec
from graft.tasks.durable.record import BatchKeys
from graft.tasks.durable.sources import SOURCE, SourceChangedError, SourcePage, purpose

logger = logging.getLogger(__name__)

PAGE_ITEMS: Final = 20_000
PAGE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Page:
    """Items by ascending position; with ``is_plain`` the values themselves, else a pickle of each."""

    positions: Sequence[int]
    items: Sequence[Any]
    is_plain: bool

    def sealed(self, batch_id: str, first: int) -> bytes:
        content = pickle.dumps((self.positions, self.items, self.is_plain), codec.PROTOCOL)
        return codec.sealed(purpose(batch_id, first), content)

    @classmethod
    def open(cls, sealed: bytes, batch_id: str, first: int) -> Page | SourcePage:
        """The page of a batch that begins with the item *first*.

        Raises:
            SignatureError: it was made elsewhere, or for another place.
        """
        content = pickle.loads(codec.unseal(purpose(batch_id, first), sealed))
        return SourcePage(*content[1:]) if content[0] == SOURCE else cls(*content)

    def index(self, position: int) -> int:
        """The index of the first item that is at *position* or behind it."""
        if isinstance(self.positions, range):
            return min(max(0, position - self.positions.start), len(self.positions))
        return bisect_left(self.positions, position)

    def only(self, kept: Sequence[int]) -> Page:
        """The page with the items at the ascending positions *kept* alone."""
        wanted = set(kept)
        indexes = [index for index, position in enumerate(self.positions) if position in wanted]
        return replace(
            self, positions=[self.positions[index] for index in indexes], items=[self.items[index] for index in indexes]
        )


EMPTY: Final = Page(range(0), (), is_plain=True)


def opened(sealed: bytes | None, batch_id: str, first: int) -> Page | SourcePage:
    """The page; an empty one, and a line in the log, where it cannot be opened: its items fail, and no others."""
    if sealed is None:
        return EMPTY
    try:
        return Page.open(sealed, batch_id, first)
    except Exception as error:
        logger.error("the page of batch %s that begins with item %d cannot be opened: %s", batch_id, first, error)
        return EMPTY


class PageReader:
    """Reads pages of one batch; the last one is kept."""

    def __init__(self, batch: BatchKeys, client: Any) -> None:
        self._batch, self._client = batch, client
        self._first = -1
        self._next = 0
        self._page = EMPTY

    def at(self, position: int) -> tuple[Page, int]:
        """The page that has, or once had, the item at *position*, and the position at which the next one begins.

        An empty page where it is gone.
        """
        if not self._first <= position < self._next:
            self._read(position)
        return self._page, self._next

    def _read(self, position: int) -> None:
        items, pages = self._batch.parts("items", "pages")
        with self._client.pipeline(transaction=False) as pipe:
            pipe.zrevrangebyscore(pages, position, "-inf", start=0, num=1)
            pipe.zrangebyscore(pages, f"({position}", "+inf", start=0, num=1)
            here, behind = pipe.execute()
        first = int(here[0]) if here else 0
        sealed = self._client.hget(items, first) if here else None
        self._first, self._next = first, int(behind[0]) if behind else 1 << 62
        page = opened(sealed, self._batch.id, first)
        self._page = page if isinstance(page, Page) else self._read_source(page)

    def _read_source(self, page: SourcePage) -> Page:
        """The items of a page that are elsewhere; none where they cannot be read, for too long.

        Raises:
            SourceError: they cannot be read at the moment.
        """
        since, name = part(_Unreadable), (self._batch.id, page.first)
        try:
            found = Page(*page.read(settings().item_limit))
        except Exception as error:
            began = since.setdefault(name, time.monotonic())
            if not isinstance(error, SourceChangedError) and time.monotonic() - began < settings().outage_grace:
                self._first = -1
                raise SourceError(f"the items from {page.first} on cannot be read: {error!r}") from error
            logger.error("the items from %d on of batch %s are given up: %r", page.first, self._batch.id, error)
            return EMPTY
        since.pop(name, None)
        return found


class SourceError(Exception):
    """A page of an input cannot be read at the moment."""


class _Unreadable(dict[tuple[str, int], float]):
    """Since when pages cannot be read."""


def trim(
    batch: BatchKeys, client: Any, clear: Sequence[tuple[int, int]], failed: bytes, trimmed: set[int]
) -> int:  # fmt: skip
    """Drop the pages of items that have all succeeded; how many went. Of a page with failed items these are left.

    *clear* are runs of items that are not done and *failed* has a bit for each failed one, both as of one moment.
    *trimmed* gathers the pages that nothing more can be taken out of.
    """
    items, pages = batch.parts("items", "pages")
    firsts = [int(first) for first in client.zrange(pages, 0, -1)]
    dropped = 0
    for first, behind in zip(firsts, [*firsts[1:], 1 << 62], strict=True):
        if first in trimmed or any(start < behind and stop >= first for start, stop in clear):
            continue
        trimmed.add(first)
        sealed = client.hget(items, first)
        page = opened(sealed, batch.id, first)
        kept = [position for position in page.positions if has_bit(failed, position)]
        if len(kept) == len(page.positions) > 0:
            continue
        if kept:
            client.hset(items, first, page.only(kept).sealed(batch.id, first))
        else:
            client.hdel(items, first)
            client.zrem(pages, first)
            dropped += 1
    return dropped


def has_bit(bits: bytes, position: int) -> bool:
    at, left = divmod(position, 8)
    return at < len(bits) and bool(bits[at] >> (7 - left) & 1)
