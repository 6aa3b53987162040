"""The periodic look for leaks."""

from __future__ import annotations

import logging
from collections import Counter

from graft.config.deployment import settings
from graft.config.own_task import own_task
from graft.config.redis_client import broker, shared
from graft.tasks.health import measure, report_store
from graft.tasks.leaks import findings, keyspace, samples

logger = logging.getLogger(__name__)

LOCK = "graft:leaks:lock"
COUNTS = "graft:leaks:counts"


@own_task("graft.leaks.check", ignore_result=True)
def check() -> int | None:
    """Judge every series, and keep what was found; how many findings, or None while another look still runs."""
    client = shared()
    with report_store.alone(client, LOCK, COUNTS) as may_go_on:
        if not may_go_on:
            return None
        config = settings()
        known = {(each.subject, each.measure): each.verdict for each in findings.read(client)}
        now = measure.clock(client)
        series = [each for each in samples.all_series(client) if now - each[-1].at < 5 * config.leaks_every + 5]
        found = [finding for each in series for finding in findings.of_process(each, config.leaks_hold)]
        past = keyspace.series(client)
        since = past[-1].at if past else 0.0
        with broker(client_name="graft-health") as queue_side:
            ran: Counter[str] = Counter()
            for sample in (sample for each in series for sample in each if sample.at > since):
                ran.update(sample.ran)
            past.append(keyspace.look(queue_side, now, ran))
        keyspace.keep(past[-1], client)
        found += findings.of_redis(past)
        findings.keep(found, client)
        for each in found:
            if known.get((each.subject, each.measure)) != each.verdict:
                logger.warning(
                    "%s: %s of %s: %s; %s", each.verdict, each.measure, each.subject, each.detail, each.remedy
                )
        if config.leaks_recycle:
            findings.ask_to_recycle(found, client)
        return len(found)
