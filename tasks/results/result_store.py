"""Writes and reads the report of an envelope: as Celery's own result, whole or as a reference to a stored report.

Pub/sub drops a subscriber whose pending output grows too large, so a large report has a key of its own. The parts of a
reduced batch have one too, since nobody but the reducer reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from celery import states
from redis.commands.core import Script

from graft.config import keys, lua
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.config.transport.unique import GIVE_KEY_BACK, Terms
from graft.tasks import codec
from graft.tasks.delivery import lease
from graft.tasks.envelope import Outcome, Report
from graft.tasks.errors import EnvelopeError
from graft.tasks.monitoring.function_stats import Ran
from graft.tasks.results import stored_later
from graft.tasks.results.backend import results_backend

OUTCOME: Final = keys.OUTCOME
CONCLUDE: Final = lua.load(__file__, "conclude_report", functions=GIVE_KEY_BACK)
STORED: Final = "stored:"
LABEL: Final = 60


@dataclass(frozen=True, slots=True)
class StoredReport:
    """Stands in the result for a report under a key of its own, with numbers that save a reader from fetching it."""

    id: str
    failed: int = 0
    retries: int = 0
    busy: float = 0.0
    elapsed: float = 0.0

    def __str__(self) -> str:
        return f"{STORED}{self.failed}:{self.retries}:{self.busy:.6f}:{self.elapsed:.6f}:{self.id}"

    @classmethod
    def parse(cls, text: str) -> StoredReport:
        _, failed, retries, busy, elapsed, envelope_id = text.split(":")
        return cls(envelope_id, int(failed), int(retries), float(busy), float(elapsed))


class LabelledText(str):
    """The result of an envelope, which Celery's events and logs show as its *label*.

    They take the first characters of a long text (Celery 5.7, ``saferepr``), and those of a signed report say nothing.
    """

    __slots__ = ("label",)
    label: str

    def __new__(cls, text: str, label: str) -> LabelledText:
        made = super().__new__(cls, text)
        made.label = label
        return made

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, slice) and key.start is None:
            return f"{self.label} "[key]  # What is cut ends at its last space.
        return super().__getitem__(key)


def label(report: Report, first: BaseException | None) -> str:
    """What became of the items of *report*, for people; *first* is the first item's error."""
    count = f"{len(report.positions)} item{'' if len(report.positions) == 1 else 's'}"
    failed = sum(not succeeded for succeeded, _ in report.values) if report.packed else 0
    if not failed:
        return count
    error = f": {type(first).__name__}: {str(first).partition(chr(10))[0]}" if first is not None else ""
    told = f"{failed} of {count} failed{error}"
    return told if len(told) <= LABEL else f"{told[: LABEL - 1]}…"


def result_text(pipe: Any, envelope_id: str, report: Report, *, is_stored: bool = False) -> str:
    """The result that carries *report*; a large one, or any if *is_stored*, is stored on the caller's pipeline."""
    sealed = report.sealed(envelope_id)
    if not is_stored and len(sealed) <= settings().pubsub_limit:
        return codec.as_text(sealed)
    pipe.set(OUTCOME + envelope_id, sealed, ex=int(settings().result_ttl))
    return reference_text(envelope_id, report)


def reference_text(envelope_id: str, report: Report) -> str:
    """The result that stands for *report*, which is kept elsewhere."""
    failed = report.packed and sum(not succeeded for succeeded, _ in report.values)
    return str(StoredReport(envelope_id, int(failed), report.retries, report.busy, report.elapsed))


@dataclass(frozen=True, slots=True)
class Conclusion:
    """An :class:`~graft.tasks.results.stored_later.Ending` of an envelope, in Celery's place and words.

    Celery would look for an earlier result first, and write this one in a transaction: two round trips of their own.
    """

    keys: list[str]
    arguments: list[Any]
    settles: bool
    task_id: str

    @classmethod
    def make(cls, request: Any, text: str, records: Sequence[str], ran: Ran) -> Conclusion:
        """Of *request*: *text* is stored and published as its result, its message acknowledged, *records* are dropped.

        What *ran* is counted. Its unique key is given back, where it has one on this server. Nothing of this is done
        where the message went back meanwhile: it is another run's.
        """
        backend, tag = results_backend(), (request.properties or {}).get("delivery_tag") or ""
        key = backend.get_key_for_task(request.id)
        record = ""
        if not request.ignore_result:
            meta = backend._get_result_meta(result=text, state=states.SUCCESS, traceback=None, request=request)
            record = backend.encode({**meta, "task_id": request.id})
        terms = Terms.of(request) if settings().backend_url == settings().broker_url else None
        call, keeps = (request.id, terms.keep_ms) if terms is not None else ("", 0)
        unique = key if terms is None else terms.name
        names = [keys.RETURNED + tag, key, keys.UNACKED, keys.UNACKED_INDEX, unique, *ran.keys, *records]
        settles = bool(tag) and _ends_with_its_result(request)
        request.ignore_result = True  # It is stored, or will be.
        arguments = [lease.fence_of(request), record, int(backend.expires or 0), int(settles), call, keeps]
        return cls(names, [*arguments, *ran.arguments], settles, request.id)

    @property
    def script(self) -> Script:
        return CONCLUDE

    @property
    def key(self) -> str:
        return self.keys[1]

    def hand_over(self) -> None:
        """Nothing else of an envelope waits for its result."""

    def told(self, reply: int) -> None:
        if reply == stored_later.LOST:
            lease.warn_of_loss(self.task_id)

    def put_on(self, pipe: Any) -> None:
        """On the caller's pipeline.

        By its text: no round trip tells beforehand whether Redis knows the script, and it has come by the end of a run.
        """
        pipe.eval(CONCLUDE.script, len(self.keys), *self.keys, *self.arguments)

    def run(self, client: Any) -> None:
        """At once, or with this process's next round trip."""
        if not (self.settles and stored_later.leave(self)):
            self.told(CONCLUDE(self.keys, self.arguments, client))


def _ends_with_its_result(request: Any) -> bool:
    """Whether nothing is left to be done once the result of *request* is stored.

    Not where Celery does more before it acknowledges, such as counting a chord's parts, nor where the broker is
    another server than the one that results go to.
    """
    is_elsewhere = settings().backend_url != settings().broker_url
    return not (request.chord or request.callbacks or request.chain or is_elsewhere)


def open_report(text: str, envelope_id: str, *, is_kept: bool = False) -> Report:
    """The report of an envelope, which *text* is or stands for. A stored report is read once, unless it *is_kept*.

    Raises:
        EnvelopeError: it stands for one that has expired.
    """
    if not text.startswith(STORED):
        return Report.open(text, envelope_id)
    report = _opened(shared().get(OUTCOME + envelope_id), envelope_id)
    if not is_kept:
        shared().unlink(OUTCOME + envelope_id)
    return report


def stored_outcomes(texts: Sequence[str]) -> list[Outcome]:
    """The outcomes of the stored reports that *texts* stand for, all of them."""
    ids = [StoredReport.parse(text).id for text in texts]
    stored = shared().mget([OUTCOME + envelope_id for envelope_id in ids]) if ids else []
    return [
        outcome
        for envelope_id, sealed in zip(ids, stored, strict=True)
        for outcome in _opened(sealed, envelope_id).outcomes()
    ]


def _opened(sealed: bytes | None, envelope_id: str) -> Report:
    if sealed is None:
        raise EnvelopeError(f"the outcome of envelope {envelope_id} has expired before it was read")
    return Report.open(sealed, envelope_id)
