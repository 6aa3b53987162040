"""The look itself, and the periodic task that takes it."""

from __future__ import annotations

import logging
import platform
import time
from typing import Any

from graft.config.deployment import settings
from graft.config.own_task import own_task
from graft.config.redis_client import shared
from graft.tasks.health import canaries, measure, report_store, webhook
from graft.tasks.health.checks import judge
from graft.tasks.health.limits import Limits
from graft.tasks.health.verdicts import Report, changes

logger = logging.getLogger(__name__)


def look(client: Any = None, before: Report | None = None) -> Report:
    """Measure and judge, without keeping anything but what later looks compare with."""
    client = client or shared()
    began = time.perf_counter()
    runs, overlaps = report_store.totals(client)
    skipped = max(0, overlaps - before.overlaps) if before else 0
    found = measure.everything(skipped)
    return Report(
        at=measure.clock(client),
        verdicts=judge(found, Limits.of(settings())),
        seconds=time.perf_counter() - began,
        by=platform.node(),
        runs=runs,
        overlaps=overlaps,
    )


@own_task("graft.health.check", ignore_result=True)
def check() -> str | None:
    """Take a look, keep it, and tell what changed; the overall state, or None while another look still runs."""
    client = shared()
    with report_store.alone(client) as may_go_on:
        if not may_go_on:
            logger.warning("a health check was skipped: the one before still runs")
            return None
        before = report_store.last(client)
        report = look(client, before)
        found = changes(before.verdicts if before else (), report.verdicts)
        report_store.keep(report, found, client)
        for change in found:
            level = logging.ERROR if change.after == "failing" else logging.WARNING
            logger.log(level, "health: %s", change)
        queues = [verdict.subject for verdict in report.verdicts if verdict.check == "depth"]
        canaries.send(queues, client, report.at)
        webhook.post(report, found, client)
        webhook.deliver(report, client)
        return report.state
