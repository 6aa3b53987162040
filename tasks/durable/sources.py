"""Inputs of durable batches that are read where they are: Redis has a line for each page, and none of the items.

    caller    walks along the input once: how many items, what each page begins with, a digest
    feeder    reads a page when its turn comes, and again when its failed items run again

A page that cannot be read, because a database is away, is tried again for two minutes; then its items fail.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from graft.tasks import codec
from graft.tasks.callables.references import FunctionRef, refer, resolve
from graft.tasks.errors import EnvelopeError, TaskQueueError, UnreferenceableError

PAGE_ITEMS: Final = 20_000
PAGE_BYTES: Final = 4 << 20

SOURCE: Final = "source"  # Begins the content of a page that is read elsewhere.

Mark = Any
"""Says where a page begins: plain values."""


class SourceChangedError(EnvelopeError):
    """A page of the input is not what it was when the batch was submitted; to read it again does not help."""


class Source(Protocol):
    """An input that is read page by page, by the caller and by a worker."""

    def walk(self) -> Iterator[tuple[Mark, Sequence[Any]]]:
        """The pages, each with its mark."""

    def read(self, mark: Mark) -> Sequence[Any]:
        """The items of the page at *mark*.

        Raises:
            SourceChangedError: they are others by now.
            Exception: it cannot be read at the moment.
        """

    @property
    def wire(self) -> tuple[Any, ...]:
        """What a worker makes it from."""


@dataclass(frozen=True)
class Numbers:
    """A ``range``."""

    numbers: range

    def walk(self) -> Iterator[tuple[Mark, Sequence[Any]]]:
        for at in range(0, len(self.numbers), PAGE_ITEMS):
            yield at, self.numbers[at : at + PAGE_ITEMS]

    def read(self, mark: Mark) -> Sequence[Any]:
        return self.numbers[mark : mark + PAGE_ITEMS]

    @property
    def wire(self) -> tuple[Any, ...]:
        return "range", self.numbers.start, self.numbers.stop, self.numbers.step


@dataclass(frozen=True)
class JsonLines:
    """The lines of a file, each of them JSON, as the items of a durable batch: ``submit(func, JsonLines(path), …)``.

    The worker that feeds reads the file under the same path, so it is on a disk that all of them have. A million lines
    take some kilobytes of Redis. The file is to stay as it is until the batch has ended: what was changed since then
    fails, and says so. Empty lines are passed over.

    Args:
        path: the file, in UTF-8.
    """

    path: str | Path

    def __iter__(self) -> Iterator[Any]:
        for _, items in self.walk():
            yield from items

    def walk(self) -> Iterator[tuple[Mark, Sequence[Any]]]:
        """Give the pages, each with what it begins with. Raises ValueError for a line that is not JSON."""
        offset, number, lines, size = 0, 0, [], 0
        with Path(self.path).open("rb") as file:
            for line in file:
                lines.append(line)
                size += len(line)
                if len(lines) >= PAGE_ITEMS or size >= PAGE_BYTES:
                    yield self._page(offset, number, lines)
                    offset, number, lines, size = offset + size, number + len(lines), [], 0
        if lines:
            yield self._page(offset, number, lines)

    def _page(self, offset: int, number: int, lines: Sequence[bytes]) -> tuple[Mark, Sequence[Any]]:
        content = b"".join(lines)
        return (offset, len(content), hashlib.sha256(content).digest()), _parsed(
            lines, f"{self.path}, line", number + 1
        )

    def read(self, mark: Mark) -> Sequence[Any]:
        """Give the items of one page."""
        offset, size, digest = mark
        with Path(self.path).open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        if hashlib.sha256(content).digest() != digest:
            raise SourceChangedError(
                f"{self.path} has been changed since the batch was submitted (bytes {offset} to {offset + size}); "
                "submit it again under another name, or with key= under this one"
            )
        return _parsed(content.splitlines(keepends=True), f"{self.path}, byte {offset}, line", 1)

    @property
    def wire(self) -> tuple[Any, ...]:
        """What a worker makes it from."""
        return "json-lines", str(Path(self.path).absolute())


def _parsed(lines: Sequence[bytes], where: str, first: int) -> list[Any]:
    items = []
    for number, line in enumerate(lines, first):
        if line.strip():
            try:
                items.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{where} {number} is not JSON: {error}") from None
    return items


@dataclass(frozen=True)
class Pages:
    """The pages that a function gives, as the items of a durable batch: ``submit(func, Pages(rows_after), …)``.

    ::

        def rows_after(key):                       # None at first
            rows = query("SELECT … WHERE id > %s ORDER BY id LIMIT 1000", key or 0)
            return rows, rows[-1]["id"] if rows else None

    The caller walks along all pages when it submits, and keeps nothing but the key of each; the worker that feeds calls
    the function again with that. So a million rows take some kilobytes of Redis. What a page has more by then is left
    out, and what it has fewer of fails.

    Args:
        page_after: importable, and quick: takes a key of plain values, gives at most 20,000 items and the next key,
            None at the end.
    """

    page_after: Callable[[Any], tuple[Sequence[Any], Any]]

    def __iter__(self) -> Iterator[Any]:
        for _, items in self.walk():
            yield from items

    def walk(self) -> Iterator[tuple[Mark, Sequence[Any]]]:
        """Give the pages, each with its key."""
        key: Any = None
        while True:
            items, behind = self._called(key)
            if items:
                yield key, items
            if behind is None:
                return
            if behind == key or codec.plain_size([behind]) is None:
                raise ValueError(
                    f"{self.page_after!r:.100} gave {behind!r:.100} as the key behind {key!r:.100}: it must be another "
                    "one, of plain values, or None at the end"
                )
            key = behind

    def read(self, mark: Mark) -> Sequence[Any]:
        """Give the items of one page."""
        return self._called(mark)[0]

    def _called(self, key: Any) -> tuple[Sequence[Any], Any]:
        items, behind = self.page_after(key)
        if len(items) > PAGE_ITEMS:
            raise ValueError(f"{self.page_after!r:.100} gave {len(items)} items, and a page has {PAGE_ITEMS} at most")
        return items, behind

    @property
    def wire(self) -> tuple[Any, ...]:
        """What a worker makes it from. Raises UnreferenceableError where it cannot import the function."""
        ref = refer(self.page_after)
        if ref.how != "import" or ref.is_async:
            raise UnreferenceableError(
                f"the worker that feeds the batch cannot import {ref.name}, or it is async: define a plain function at "
                "the top level of an installed module"
            )
        return "pages", ref.how, ref.name, ref.payload, ref.is_async


def source_of(items: Any) -> Source | None:
    """The source that *items* are, if they are one."""
    if isinstance(items, range):
        return Numbers(items)
    return items if isinstance(items, JsonLines | Pages) else None


def made(wire: tuple[Any, ...]) -> Source:
    """The source that *wire* stands for; it comes from a verified page."""
    kind, *fields = wire
    if kind == "range":
        return Numbers(range(*fields))
    return JsonLines(fields[0]) if kind == "json-lines" else Pages(resolve(FunctionRef(*fields)))


@dataclass(frozen=True)
class SourcePage:
    """The items at ascending *positions*, on the page of a source that has *mark* and begins with the item *first*."""

    positions: Sequence[int]
    first: int
    wire: tuple[Any, ...]
    mark: Mark

    def only(self, kept: Sequence[int]) -> SourcePage:
        """The page with the items at the ascending positions *kept* alone."""
        return replace(self, positions=tuple(kept))

    def sealed(self, batch_id: str, first: int) -> bytes:
        content = pickle.dumps((SOURCE, self.positions, self.first, self.wire, self.mark), codec.PROTOCOL)
        return codec.sealed(purpose(batch_id, first), content)

    def read(self, limit: int) -> tuple[Sequence[int], Sequence[Any], bool]:
        """Positions, items, and whether these are the values themselves, else pickles. What is gone is left out.

        Raises:
            Exception: it cannot be read.
        """
        found = made(self.wire).read(self.mark)
        last = self.first + len(found)
        positions: Sequence[int] = self.positions
        if not isinstance(positions, range) or positions.stop > last:
            positions = [position for position in positions if position < last]
        items = [found[position - self.first] for position in positions]
        size = codec.plain_size(items)
        if size is not None and size <= limit:
            return positions, items, True
        frames = {}
        for position, item in zip(positions, items, strict=True):
            with suppress(TaskQueueError):  # It is left out.
                frames[position] = codec.dump_item(item, limit, "item", position)
        return list(frames), list(frames.values()), False


def purpose(batch_id: str, first: int) -> str:
    """What a page of a batch is sealed for."""
    return f"page:{batch_id}:{first}"
