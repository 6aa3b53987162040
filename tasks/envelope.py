"""One message: a callable, a batch of items and their limits; and what comes back: an outcome for each item.

Both travel as one signed text (codec.py) inside an ordinary Celery message. Items that are all plain values ride as one
pickle; others ride as a pickle each, so that one that a worker cannot open costs only itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from graft.tasks import codec
from graft.tasks.errors import EnvelopeError, TaskQueueError
from graft.tasks.policy import ONCE, RetryPolicy
from graft.tasks.worker_runtime import ends_process

VERSION: Final = 1
RUN_ENVELOPE: Final = "graft.batch"  # The task that runs an envelope,
REDUCE: Final = "graft.reduce"  # and the one that reduces a batch: the body of its chord.
# Fields that earlier versions do not know, with the value that need not be sent.
NEWER: Final[dict[str, tuple[Any, ...]]] = {
    "since": (0.0,), "generation": (None,), "postponed": ({},), "spent": ((0.0, 0.0),),
}  # fmt: skip

Child = tuple[str, tuple[int, ...]]  # An envelope made of items of another one: its id, and their positions.


@dataclass(frozen=True, slots=True)
class WireFunction:
    """A callable as the envelope names it: by import, or by the digest under which its pickle is stored."""

    how: Literal["import", "value"]
    name: str
    payload: bytes
    is_async: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one item.

    Attributes:
        index: the item's position in the batch, from 0.
        value: what the function returned; None if the item failed.
        error: the exception that the item ended with, or None. The worker's traceback is its ``__cause__``.
    """

    index: int
    value: Any = None
    error: BaseException | None = None

    def unwrap(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, slots=True)
class PoolRef:
    """The worker pool under whose bounds an envelope runs (pools/slot.py), and where its outcomes go.

    The smallest ``score`` goes first, then the smallest ``since``. ``keys`` are the caller's own names of the items, by
    position. With ``is_unit`` all items are one task of the pool. Where only the sender reads the stream, outcomes
    go there in the ``report``.
    """

    name: str
    generation: str
    client: str
    score: float
    since: str
    keys: dict[int, Any]
    to: Literal["stream", "report", "caller", "nobody"]
    is_unit: bool


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message's worth of work.

    ``positions`` are the items' numbers in their batch. ``retries`` counts how often the envelope has been sent back,
    ``reruns`` the items that were. ``carried`` holds outcomes of earlier runs that travel with what is left to do, by
    position, as encoded by :func:`value_frame` and :func:`error_frame`. ``stores_report`` has the report kept under a
    key of its own. ``shared`` lets idle processes take items over when the run takes long; ``children`` are the
    envelopes that these went into. ``pool`` is the worker pool that it runs in, if any. ``since`` is when its first run
    began, by Redis's clock, where its policy asks. ``generation`` is that of the durable batch whose record takes the
    outcomes in; None where the caller does. ``postponed`` counts, by position, how often an item was sent back by a
    limit, without having run; ``spent`` is the cost of earlier runs, ``busy`` and ``elapsed`` as in a report.
    """

    id: str
    batch: str
    function: WireFunction
    positions: Sequence[int]
    items: Sequence[Any]
    packed: bool
    unpack: bool = False
    concurrency: int = 1
    timeout: float | None = None
    policy: RetryPolicy = ONCE
    stores_report: bool = False
    retries: int = 0
    reruns: int = 0
    carried: dict[int, tuple[bool, bytes]] = field(default_factory=dict)
    shared: bool = False
    children: tuple[Child, ...] = ()
    pool: PoolRef | None = None
    since: float = 0.0
    generation: int | None = None
    postponed: dict[int, int] = field(default_factory=dict)
    spent: tuple[float, float] = (0.0, 0.0)

    def item(self, index: int) -> Any:
        """The item at *index*, opened."""
        return pickle.loads(self.items[index]) if self.packed else self.items[index]

    def run_of(self, index: int) -> int:
        """The number of this run for the item at *index*, from 1; when a limit sent it back, it had none."""
        return self.retries + 1 - self.postponed.get(self.positions[index], 0)

    def part(self, indexes: Sequence[int]) -> Envelope:
        """The envelope with the items at *indexes* only."""
        positions, items = self.positions, self.items
        return replace(
            self, positions=[positions[index] for index in indexes], items=[items[index] for index in indexes]
        )

    def sealed(self) -> bytes:
        """The envelope as signed bytes, bound to its own id."""
        return codec.sealed("envelope", pickle.dumps((VERSION, *_fields(self)), codec.PROTOCOL))

    def seal(self) -> str:
        """The same as text."""
        return codec.as_text(self.sealed())

    @classmethod
    def open(cls, text: str | bytes, task_id: str) -> Envelope:
        """The envelope in *text*, or in signed bytes.

        Raises:
            SignatureError: not signed by this deployment.
            EnvelopeError: another version, or sent under another id than its own.
        """
        content = codec.verified("envelope", text)
        try:
            version, *values = pickle.loads(content)
        except Exception as error:
            raise EnvelopeError(f"this worker cannot open the envelope: {error!r}") from error
        if version != VERSION:
            raise EnvelopeError(
                f"envelope version {version} is not known to this worker, which reads {VERSION}; deploy workers before "
                "their callers"
            )
        envelope = cls(*values)
        if envelope.id != task_id:
            raise EnvelopeError(f"envelope {envelope.id} was sent under the id {task_id}")
        return envelope


def _fields(envelope: Envelope) -> tuple[Any, ...]:
    names = list(Envelope.__slots__)
    while getattr(envelope, names[-1]) in NEWER.get(names[-1], ()):  # Workers of an earlier version know no field more.
        names.pop()
    return tuple(getattr(envelope, name) for name in names)


@dataclass(frozen=True, slots=True)
class Report:
    """A worker's report on one envelope: an outcome for each position, and the cost of the run.

    ``busy`` is the sum of the items' own durations, ``elapsed`` the time on the clock, both in seconds; ``retries``
    counts items that were run again; ``awaited`` says that items ran together on the event loop. ``children`` are the
    envelopes that the other items went into.
    """

    positions: Sequence[int]
    values: Sequence[Any]
    packed: bool
    busy: float
    elapsed: float
    retries: int
    awaited: bool = False
    children: tuple[Child, ...] = ()
    size: int = 0

    def sealed(self, task_id: str) -> bytes:
        """The report as signed bytes, bound to the id of its envelope."""
        content = (
            VERSION, self.positions, self.values, self.packed, self.busy, self.elapsed, self.retries, self.awaited,
            self.children,
        )  # fmt: skip
        return codec.sealed(f"outcome:{task_id}", pickle.dumps(content, codec.PROTOCOL))

    def seal(self, task_id: str) -> str:
        """The same as text."""
        return codec.as_text(self.sealed(task_id))

    @classmethod
    def open(cls, text: str | bytes, task_id: str) -> Report:
        """The report in *text*, or in signed bytes, which must have been made for the envelope *task_id*."""
        version, *values = pickle.loads(codec.verified(f"outcome:{task_id}", text))
        if version != VERSION:
            raise EnvelopeError(f"outcome version {version} is not known to this process, which reads {VERSION}")
        positions, outcomes, packed, busy, elapsed, retries, awaited, children = values
        return cls(positions, outcomes, packed, busy, elapsed, retries, awaited, children, len(text))

    def outcomes(self) -> Iterator[Outcome]:
        """The outcomes by position; one that cannot be opened here is an error of its own."""
        if not self.packed:
            for position, value in zip(self.positions, self.values, strict=True):
                yield Outcome(position, value)
            return
        for position, (succeeded, frame) in zip(self.positions, self.values, strict=True):
            if not succeeded:
                yield Outcome(position, error=codec.load_error(frame))
                continue
            try:
                yield Outcome(position, pickle.loads(frame))
            except BaseException as error:
                if ends_process(error):
                    raise
                unreadable = EnvelopeError(f"the result of item {position} cannot be opened here: {error!r}")
                unreadable.__cause__ = error
                yield Outcome(position, error=unreadable)


def value_frame(value: Any, position: int, limit: int) -> tuple[bool, bytes]:
    """One result as it travels; a result that cannot travel becomes an error."""
    try:
        return True, codec.dump_item(value, limit, "the result of item", position)
    except TaskQueueError as error:
        return False, codec.dump_error(error)


def error_frame(error: BaseException, *, skip_frames: int = 0) -> tuple[bool, bytes]:
    """One error as it travels."""
    return False, codec.dump_error(error, skip_frames=skip_frames)
