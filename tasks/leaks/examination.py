"""The check for leaks itself."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from graft.config.deployment import settings
from graft.config.redis_client import broker, server_time, shared
from graft.tasks.leaks import findings, keyspace, samples
from graft.tasks.monitoring.exclusive import exclusive

logger = logging.getLogger(__name__)

CHECK: Final = "graft:leaks"


def check() -> int | None:
    """Judge every series, and keep what was found; how many findings, or None while another check runs."""
    client = shared()
    with exclusive(CHECK, client) as may_go_on:
        if not may_go_on:
            return None
        config = settings()
        known = {(each.subject, each.measure): each.verdict for each in findings.read(client)}
        now = server_time(client)
        series = [each for each in samples.all_series(client) if now - each[-1].at < 5 * config.leaks_every + 5]
        found = [finding for each in series for finding in findings.of_process(each, config.leaks_hold)]
        past = keyspace.series(client)
        since = past[-1].at if past else 0.0
        with broker(client_name="graft-health") as queue_side:
            ran: Counter[str] = Counter()
            for sample in (sample for each in series for sample in each if sample.at > since):
                ran.update(sample.ran)
            past.append(keyspace.sample(queue_side, now, ran))
        keyspace.keep(past[-1], client)
        found += findings.of_redis(past)
        findings.keep(found, client)
        for each in found:
            if known.get((each.subject, each.measure)) != each.verdict:
                logger.warning(
                    "%s: %s of %s: %s; %s", each.verdict, each.measure, each.subject, each.detail, each.remedy
                )
        if config.leaks_recycle:
            findings.request_recycling(found, client)
        return len(found)
