"""The outcomes of a durable batch: a worker keeps those of an envelope as one block; readers take them in pages.

A block is the signed report of one envelope, with its id and generation before it. A second report of the same items is
dropped by the script that keeps it, so an envelope that runs twice counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft.config import lua
from graft.config.deployment import settings
from graft.tasks.durable.positions import as_runs, as_text
from graft.tasks.durable.record import OPEN, BatchKeys
from graft.tasks.envelope import Child, Envelope, Outcome, Report, error_frame
from graft.tasks.ids import new_id

KEEP: Final = lua.load(__file__, "keep")
PAGE: Final = lua.load(__file__, "page")
PAGE_BYTES: Final = 1 << 20
PAGE_RUNS: Final = 500
AT_ONCE: Final = 10_000  # Items of one block that have one error.
BLOCKS: Final = 16  # That a reader in the order of arrival takes at once.


def keep(client: Any, envelope: Envelope, report: Report) -> None:
    """Keep *report*, on the caller's pipeline."""
    failed = [
        position for position, (succeeded, _) in zip(report.positions, report.values, strict=True) if not succeeded
    ] if report.packed else []  # fmt: skip
    _keep(client, envelope.batch, envelope.generation or 0, envelope.id, report, failed)


def keep_report(client: Any, batch_id: str, report: Report) -> None:
    """Keep a *report* of values alone that another batch had, in a batch that has not begun."""
    _keep(client, batch_id, 0, new_id(), report, ())


def keep_failed(
    client: Any,
    batch_id: str,
    generation: int,
    runs: Sequence[tuple[int, int]],
    error: BaseException,
    envelope: str = "",
) -> None:
    """Keep *error* as the outcome of all items in *runs*, which were those of *envelope*, if any."""
    frame = error_frame(error)
    for first, last in runs:
        for at in range(first, last + 1, AT_ONCE):
            positions = range(at, min(at + AT_ONCE, last + 1))
            report = Report(positions, [frame] * len(positions), True, 0.0, 0.0, 0)
            _keep(client, batch_id, generation, envelope or new_id(), report, positions)


def _keep(
    client: Any, batch_id: str, generation: int, envelope: str, report: Report, failed: Sequence[int]
) -> None:  # fmt: skip
    batch = BatchKeys(batch_id)
    parts = batch.parts("done", "failed", "blocks", "index", "sent")
    children: list[str] = []
    for child, positions in report.children:
        children += (child, as_text(as_runs(positions)))
    block = f"{generation}:{envelope}:".encode() + report.sealed(envelope)
    KEEP(
        [batch.record, *parts, OPEN, *batch.parts("items", "pages", "plan")],
        [
            batch_id, generation, envelope, as_text(as_runs(report.positions)), as_text(as_runs(failed)),
            report.retries, block, int(settings().batch_ttl), *children,
        ],
        client,
    )  # fmt: skip


def note_children(client: Any, envelope: Envelope, left: Sequence[int], children: Sequence[Child]) -> None:
    """Note that *children* have items of *envelope*, and that the positions *left* are still its own."""
    texts = {child: as_text(as_runs(positions)) for child, positions in children}
    client.hset(BatchKeys(envelope.batch).part("sent"), mapping={envelope.id: as_text(as_runs(left)), **texts})


@dataclass(frozen=True)
class Block:
    """The report of one envelope, as it is kept."""

    generation: int
    report: Report

    @classmethod
    def open(cls, kept: bytes) -> Block:
        """Raises SignatureError where it was made elsewhere."""
        generation, envelope, sealed = kept.split(b":", 2)
        return cls(int(generation), Report.open(sealed, envelope.decode()))

    def outcomes(self, generation: int) -> Iterator[Outcome]:
        """Its outcomes, without the errors that *generation* has had run again."""
        for outcome in self.report.outcomes():
            if outcome.error is None or self.generation >= generation:
                yield outcome


class InOrder:
    """Reads outcomes in the order of the items, from one item on; each reader has its own."""

    def __init__(self, batch: BatchKeys, client: Any, start: int = 0) -> None:
        self._keys, self._client = batch.parts("done", "index", "blocks"), client
        self.position = start

    def take(self, generation: int) -> list[Outcome]:
        """The next outcomes, about a megabyte of them; nothing where the next item has none yet. One round trip.

        An error of an earlier *generation* than this is none: the item runs again.
        """
        flat, texts = PAGE(self._keys, [self.position, PAGE_BYTES, PAGE_RUNS], self._client)
        if not flat:
            return []
        blocks = {
            number: {outcome.index: outcome for outcome in Block.open(block).outcomes(generation)}
            for number, block in zip(texts[::2], texts[1::2], strict=True)
        }
        firsts = [int(first) for first in flat[::2]]
        taken: list[Outcome] = []
        for number, behind in zip(flat[1::2], [*firsts[1:], 1 << 62], strict=True):
            outcomes = blocks[number]
            while self.position < behind and (outcome := outcomes.get(self.position)) is not None:
                taken.append(outcome)
                self.position += 1
            if self.position < behind:
                break
        return taken


class AsArrived:
    """Reads outcomes in the order in which they came, each item's once; each reader has its own."""

    def __init__(self, batch: BatchKeys, client: Any) -> None:
        self._blocks, self._client = batch.part("blocks"), client
        self._next = 1
        self._given = bytearray()

    def take(self, generation: int) -> list[Outcome]:
        """The next outcomes; nothing where no more have come. An error of an earlier generation has been superseded."""
        taken: list[Outcome] = []
        while not taken:
            found = self._client.hmget(self._blocks, range(self._next, self._next + BLOCKS))
            for kept in found:
                if kept is None:
                    return taken
                self._next += 1
                taken += (one for one in Block.open(kept).outcomes(generation) if not self._has_given(one.index))
        return taken

    def _has_given(self, position: int) -> bool:
        """Whether the outcome of this item was taken before; it is from now on."""
        at, bit = divmod(position, 8)
        if at >= len(self._given):
            self._given.extend(bytes(at + 1 - len(self._given) + len(self._given) // 2))
        was_given = bool(self._given[at] >> bit & 1)
        self._given[at] |= 1 << bit
        return was_given


def failed_positions(batch: BatchKeys, client: Any) -> list[int]:
    """The items that have failed, in their order."""
    bits = client.get(batch.part("failed")) or b""
    return [8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> (7 - bit) & 1]
