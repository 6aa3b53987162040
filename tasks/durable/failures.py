"""Why items of a durable batch have failed: their errors by cause, from the outcomes that Redis keeps.

Signatures are verified; no exception is made anew and no value is read, so this needs none of the program's modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from graft.tasks import codec
from graft.tasks.dead_letters.store import without_values
from graft.tasks.durable.outcomes import PAGE, PAGE_BYTES, PAGE_RUNS, Block, failed_positions
from graft.tasks.durable.record import BatchRecord

MOST_BYTES: Final = 16 << 20  # Of outcomes, read for one batch.
EXAMPLES: Final = 10  # Items that are named for each cause.


@dataclass(frozen=True)
class FailureCause:
    """Items that have failed alike: ``error`` and ``traceback`` of the first, ``items`` are the first positions."""

    error: str
    traceback: str
    count: int
    items: tuple[int, ...]


@dataclass(frozen=True)
class Failures:
    """The causes, the most frequent first. ``read`` of ``total`` failed items were read."""

    causes: tuple[FailureCause, ...]
    read: int
    total: int


def failures(record: BatchRecord, client: Any, most_bytes: int = MOST_BYTES) -> Failures:
    """Why items of the batch have failed by now; of very many the first ones are read.

    Raises:
        SignatureError: an outcome was made elsewhere.
    """
    positions = failed_positions(record.keys, client)
    found: dict[str, FailureCause] = {}
    read = 0
    for position, frame in _errors(record, positions, client, most_bytes):
        read += 1
        name, message, trace = codec.describe_error(frame)
        cause = f"{name}\0{without_values(message)}"
        known = found.get(cause) or FailureCause(f"{name}: {message}", trace, 0, ())
        found[cause] = replace(known, count=known.count + 1, items=(*known.items, position)[:EXAMPLES])
    causes = sorted(found.values(), key=lambda one: -one.count)
    return Failures(tuple(causes), read, len(positions))


def _errors(record: BatchRecord, positions: list[int], client: Any, room: int) -> Iterator[tuple[int, bytes]]:
    """The failed items at *positions*, which ascend, each with its error as it is kept."""
    keys = record.keys.parts("done", "index", "blocks")
    wanted, seen = set(positions), set[bytes]()
    for position in positions:
        if position not in wanted:
            continue
        if room <= 0:
            return
        _, texts = PAGE(keys, [position, min(room, PAGE_BYTES), PAGE_RUNS], client)
        for number, kept in zip(texts[::2], texts[1::2], strict=True):
            room -= len(kept)
            if number in seen:
                continue
            seen.add(number)
            block = Block.open(kept)
            if not block.report.packed or block.generation < record.generation:
                continue
            for at, (succeeded, frame) in zip(block.report.positions, block.report.values, strict=True):
                if not succeeded and at in wanted:
                    wanted.discard(at)
                    yield at, frame
        wanted.discard(position)
