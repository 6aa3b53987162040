"""Takes items from the input of a batch and packs as many as one envelope may hold.

Items that are all plain values travel as one pickle. Others are pickled one by one, when it is certain that they leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.envelope import Outcome
from graft.tasks.errors import TaskQueueError
from graft.tasks.sending.sources import Source


@dataclass(frozen=True, slots=True)
class PackedItems:
    """Items as an envelope holds them; ``is_pickled``: each as a pickle of its own. ``refused`` ones cannot travel."""

    positions: Sequence[int]
    items: Sequence[Any]
    is_pickled: bool
    refused: Sequence[Outcome] = ()


class ItemPacker:
    """Numbers the items of *source* and packs them; *is_wanted* is asked for each pickled one before it leaves."""

    def __init__(self, source: Source, is_wanted: Callable[[int], bool]) -> None:
        self._source = source
        self._is_wanted = is_wanted
        self._backlog: deque[tuple[int, Any]] = deque()  # Taken from the source, and not packed yet.
        self.taken = 0

    @property
    def is_drained(self) -> bool:
        """Whether nothing can be packed now."""
        return not self._backlog and not self._source.ready

    @property
    def backlog(self) -> Sequence[tuple[int, Any]]:
        """Items that were taken from the source and not packed, with their positions."""
        return self._backlog

    @property
    def ready(self) -> int:
        """Items that can be packed now."""
        return self._source.ready + len(self._backlog)

    @property
    def remaining(self) -> int | None:
        """Items that were not packed; None while the end of the input is not known, 0 at the end."""
        remaining = self._source.remaining
        return None if remaining is None else remaining + len(self._backlog)

    def pack(self, size: int) -> PackedItems:
        """*size* items at most, fewer where bytes run out."""
        if not self._backlog:
            items = self._source.take(size)
            positions = self._source.positions(self.taken, len(items))
            self.taken += len(items)
            plain = None if self._source.encoded else codec.plain_size(items)
            if plain is not None and plain <= settings().item_limit:
                return PackedItems(positions, items, is_pickled=False)
            self._backlog.extend(zip(positions, items, strict=True))
        return self._pickled(size)

    def _pickled(self, size: int) -> PackedItems:
        positions: list[int] = []
        frames: list[bytes] = []
        refused: list[Outcome] = []
        room, limit, is_encoded = settings().envelope_limit, settings().item_limit, self._source.encoded
        while self._backlog and len(frames) < size:
            position, item = self._backlog[0]
            try:
                frame = item if is_encoded else codec.dump_item(item, limit, "item", position)
            except TaskQueueError as error:
                self._backlog.popleft()
                refused.append(Outcome(position, error=error))
                continue
            if frames and len(frame) > room:
                break
            self._backlog.popleft()
            if self._is_wanted(position):
                positions.append(position)
                frames.append(frame)
                room -= len(frame)
        return PackedItems(positions, frames, is_pickled=True, refused=refused)

    def close(self) -> list[int]:
        """Pack nothing more; the positions of the items that were not packed, which are numbered to the end."""
        total = self.taken + (self._source.remaining or 0)
        left = [*(position for position, _ in self._backlog), *range(self.taken, total)]
        self._backlog.clear()
        self._source.close()
        self.taken = total
        return left
