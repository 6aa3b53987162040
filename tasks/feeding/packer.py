"""Makes pages of the items of a durable batch, and a digest by which the same ones are known again."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.durable.pages import PAGE_BYTES, PAGE_ITEMS, Page
from graft.tasks.durable.sources import Source, SourcePage
from graft.tasks.errors import TaskQueueError

BadItems = Literal["keep", "raise"]
Watch = Callable[[Iterable[Any]], Iterator[Any]]


@dataclass
class Packer:
    """Makes pages of items, and a digest of what they are; ``refused`` are the items that cannot travel."""

    items: Callable[[], Iterable[Any]]
    raises: bool
    total: int = 0
    refused: list[tuple[int, TaskQueueError]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sha = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._sha.hexdigest()

    def pages(self, watch: Watch | None) -> Iterator[tuple[int, Page]]:
        """The pages, each with the position that it begins at. All items pass through *watch*."""
        rest = iter(self.items() if watch is None else watch(self.items()))
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


@dataclass
class SourcePacker:
    """The same for items that are read where they are: pages say where."""

    source: Source
    total: int = 0
    refused: tuple[tuple[int, TaskQueueError], ...] = ()

    def __post_init__(self) -> None:
        self._sha = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._sha.hexdigest()

    def pages(self, watch: Watch | None) -> Iterator[tuple[int, SourcePage]]:
        wire = self.source.wire
        for mark, items in self.source.walk():
            if watch is not None:
                for _ in watch(items):
                    pass
            chunk = list(items)
            is_plain = codec.plain_size(chunk, codec.CONTAINERS) is not None
            self._sha.update(repr(chunk).encode("utf-8", "surrogatepass") if is_plain else pickle.dumps(chunk))
            first, self.total = self.total, self.total + len(chunk)
            yield first, SourcePage(range(first, self.total), first, wire, mark)


@dataclass(frozen=True)
class Input:
    """What a batch is made of. *items* gives the items, from the beginning each time; *source* reads them elsewhere."""

    items: Callable[[], Iterable[Any]]
    bad_items: BadItems = "keep"
    source: Source | None = None

    def packer(self) -> Packer | SourcePacker:
        if self.source is not None:
            return SourcePacker(self.source)
        return Packer(self.items, raises=self.bad_items == "raise")
