"""The start page: the verdict, what is unhealthy with its remedy, the figures of now with their last hour and day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from tornado import web
from tornado.web import url

from graft.config import harden
from graft.config.deployment import app_name
from graft.config.redis_client import shared
from graft.scripts.commands.health import report as health
from graft.scripts.flower_pages.frame import Page, addresses
from graft.scripts.flower_pages.moments import Moment, moments
from graft.scripts.flower_pages.pages.batches import BatchRow, of_note, of_record
from graft.scripts.flower_pages.pages.dead_letters import recent_causes
from graft.scripts.flower_pages.pages.health import ChecksPage
from graft.scripts.flower_pages.series import Series, split
from graft.scripts.snapshot import QueueLine
from graft.tasks.dead_letters.query import Cause
from graft.tasks.durable import record as records
from graft.tasks.durable.record import BatchRecord
from graft.tasks.health.history import Snapshot
from graft.tasks.health.verdicts import HealthState, Verdict

SHOWN: Final = 8  # Queues and batches.


@dataclass(frozen=True)
class Overview:
    """The start page. Rates are None until they are known; ``demand`` are messages that want a slot.

    ``causes`` are the most frequent ones of the dead letters of the last day.
    """

    state: HealthState
    bad: tuple[Verdict, ...]
    checked_at: float
    checks: int
    items: float | None
    errors: float | None
    retries: float | None
    waiting: int
    held: int
    demand: float
    slots: int
    busy: int
    workers: int
    oldest: float | None
    oldest_in: str
    dead_letters: int
    queues: tuple[QueueLine, ...]
    batches: tuple[BatchRow, ...]
    causes: tuple[Cause, ...]
    series: dict[str, Series]
    app: str


class OverviewPage(ChecksPage):
    template = "graft_overview.html"
    tab = "graft-overview"
    title = "Overview"

    def read(self, question: Any) -> Overview:
        moment = moments().take()
        report = health.current()
        client = shared()
        durable = records.read_all(records.to_feed(client), client)
        return overview(moment, report.verdicts, report.at, moments().past(), durable, recent_causes().look())


def overview(
    moment: Moment,
    verdicts: Sequence[Verdict],
    checked_at: float,
    past: Sequence[Snapshot],
    durable: Sequence[BatchRecord],
    causes: Sequence[Cause],
) -> Overview:
    """The page of *moment*."""
    now, rates = moment.now, moment.rates
    order = {"failing": 0, "degraded": 1}
    bad = sorted((one for one in verdicts if one.state != "ok"), key=lambda one: order[one.state])
    oldest = max(
        (line for line in now.queues if line.oldest is not None), key=lambda line: line.oldest or 0, default=None
    )
    shown = sorted((one for one in now.queues if one.waiting or one.remark), key=lambda one: -one.waiting)
    ids = {record.id for record in durable}
    running = [of_record(record) for record in durable if not record.ended]
    running += [of_note(note, is_cancelled=False) for note in now.batches if note.id not in ids]
    slots, busy = sum(one.slots for one in now.workers), sum(one.busy for one in now.workers)
    held = sum(one.waiting for one in now.workers)
    waiting = sum(line.waiting for line in now.queues)
    items = sum(rates.items.values()) if rates else _last_rate(past)
    return Overview(
        state=bad[0].state if bad else "ok", bad=tuple(bad), checked_at=checked_at, checks=len(verdicts), items=items,
        errors=rates.errors if rates else None, retries=rates.retries if rates else None, waiting=waiting, held=held,
        demand=(waiting + held + busy) / max(1, slots), slots=slots, busy=busy, workers=len(now.workers),
        oldest=oldest.oldest if oldest else None, oldest_in=oldest.name if oldest else "",
        dead_letters=now.dead_letters,
        queues=tuple(shown[:SHOWN]),
        batches=tuple(running[:SHOWN]), causes=tuple(causes), series=series(past, now.at), app=app_name(),
    )  # fmt: skip


def series(past: Sequence[Snapshot], now: float) -> dict[str, Series]:
    """Each figure of the overview over the last hour and day. Pure."""
    return {
        "items": split(_steps(past, "items"), now),
        "errors": split(_steps(past, "errors"), now),
        "waiting": split([(one.at, sum(pair[0] for pair in one.queues.values())) for one in past], now),
        "oldest": split([(one.at, max((pair[1] for pair in one.queues.values()), default=0.0)) for one in past], now),
        "demand": split([(one.at, one.per_slot) for one in past], now),
        "dead_letters": split([(one.at, float(one.dead_letters)) for one in past], now),
    }


def _steps(past: Sequence[Snapshot], name: str) -> list[tuple[float, float]]:
    """A total's growth each second, between one snapshot and the next; a total that fell began anew."""
    return [
        (after.at, max(0, getattr(after, name) - getattr(before, name)) / max(after.at - before.at, 1e-3))
        for before, after in pairwise(past)
    ]


def _last_rate(past: Sequence[Snapshot]) -> float | None:
    steps = _steps(past[-2:], "items")
    return steps[-1][1] if steps else None


class Start(Page):
    """Flower's own start page stays at /workers; its script would take this page for it at the address /."""

    def prepare(self) -> None:
        """An app whose broker is not Redis has Flower's own start page."""

    @web.authenticated
    async def get(self, *path: str) -> None:
        self.redirect(self.address("graft-overview" if harden.is_active(self.capp) else "workers"))


ADDRESSES: Final = [url(r"/", Start), *addresses(r"", OverviewPage, "graft-overview")]
