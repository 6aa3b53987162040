"""The health check itself."""

from __future__ import annotations

import logging
import platform
import time
from typing import Any, Final

from graft.config.deployment import settings
from graft.config.redis_client import server_time, shared
from graft.tasks.health import canaries, measure, report_store, webhook
from graft.tasks.health.checks import judge
from graft.tasks.health.verdicts import HealthReport, changes
from graft.tasks.monitoring.exclusive import exclusive, totals

logger = logging.getLogger(__name__)

CHECK: Final = "graft:health"


def examine(client: Any = None, before: HealthReport | None = None) -> HealthReport:
    """Measure and judge; only what later checks compare with is kept."""
    client = client or shared()
    began = time.perf_counter()
    runs, overlaps = totals(CHECK, client)
    skipped = max(0, overlaps - before.overlaps) if before else 0
    found = measure.everything(skipped)
    return HealthReport(
        at=server_time(client),
        verdicts=judge(found, settings()),
        seconds=time.perf_counter() - began,
        by=platform.node(),
        runs=runs,
        overlaps=overlaps,
    )


def check() -> str | None:
    """Examine the deployment, keep the report and publish what changed; the state, or None while another check runs."""
    client = shared()
    with exclusive(CHECK, client) as may_go_on:
        if not may_go_on:
            logger.warning("a health check was skipped: the one before still runs")
            return None
        before = report_store.last(client)
        report = examine(client, before)
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
