"""Where the answer to an envelope stands: announced as Celery's own result, whole or as a claim on what is kept apart.

Pub/sub drops a subscriber whose pending output grows too large, so a large report has a key of its own; so have the
parts of a reduced batch, which nobody but the reducer reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from celery import states

from graft.config.deployment import app, settings
from graft.config.redis_client import shared
from graft.config.transport.qos import stock
from graft.tasks.envelope import Outcome, Report
from graft.tasks.errors import EnvelopeError

OUTCOME: Final = "graft:outcome:"
CLAIM: Final = "claim:"


@dataclass(frozen=True, slots=True)
class Claim:
    """Stands for a report that is kept under a key of its own; the figures spare a reader from fetching it."""

    id: str
    failed: int = 0
    retries: int = 0
    busy: float = 0.0
    elapsed: float = 0.0

    def __str__(self) -> str:
        return f"{CLAIM}{self.failed}:{self.retries}:{self.busy:.6f}:{self.elapsed:.6f}:{self.id}"

    @classmethod
    def parse(cls, text: str) -> Claim:
        _, failed, retries, busy, elapsed, envelope_id = text.split(":")
        return cls(envelope_id, int(failed), int(retries), float(busy), float(elapsed))


def announce(pipe: Any, request: Any, text: str) -> None:
    """Store and publish *text* as the result of *request*, on the caller's pipeline, in Celery's place and words.

    Celery would look for an earlier result first, and write this one in a transaction: two round trips of their own.
    """
    if request.ignore_result:
        return
    backend = app().backend
    meta = backend._get_result_meta(result=text, state=states.SUCCESS, traceback=None, request=request)
    record = backend.encode({**meta, "task_id": request.id})
    key = backend.get_key_for_task(request.id)
    pipe.set(key, record, ex=backend.expires)
    pipe.publish(key, record)
    request.ignore_result = True  # It is stored.


def settle(pipe: Any, request: Any) -> None:
    """Have Redis forget the message of *request*, on the caller's pipeline, behind its result.

    Not where Celery does more before it acknowledges, such as counting a chord's parts, nor where the broker is
    another server than the one that results go to.
    """
    if request.chord or request.callbacks or request.chain or settings().backend_url != settings().broker_url:
        return
    tag = (request.properties or {}).get("delivery_tag")
    if tag:
        pipe.hdel(stock.Channel.unacked_key, tag)
        pipe.zrem(stock.Channel.unacked_index_key, tag)


def open_report(text: str, envelope_id: str, client: Any) -> Report:
    """The report of an envelope, which *text* is or stands for.

    Raises:
        EnvelopeError: it stood for one that has expired.
    """
    if not text.startswith(CLAIM):
        return Report.open(text, envelope_id)
    stored = client.get(OUTCOME + envelope_id)
    if stored is None:
        raise EnvelopeError(f"the outcome of envelope {envelope_id} has expired before it was read")
    report = Report.open(stored, envelope_id)
    client.unlink(OUTCOME + envelope_id)
    return report


def fetch_claims(claims: Sequence[str]) -> list[Outcome]:
    """The outcomes behind *claims*, all of them."""
    ids = [Claim.parse(claim).id for claim in claims]
    texts = shared().mget([OUTCOME + envelope_id for envelope_id in ids]) if ids else []
    found: list[Outcome] = []
    for envelope_id, text in zip(ids, texts, strict=True):
        if text is None:
            raise EnvelopeError(f"the outcome of envelope {envelope_id} has expired before it was read")
        found.extend(Report.open(text, envelope_id).outcomes())
    return found
