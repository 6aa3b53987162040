"""Looks at Redis before a worker starts: one that would lose messages is refused (config/redis_checks.py)."""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery import bootsteps

from graft.config.deployment import settings
from graft.config.redis_checks import Finding, Role, ask, judge
from graft.config.redis_client import connect
from graft.config.settings import Settings, without_password

logger = logging.getLogger(__name__)


def findings(config: Settings, url: str, role: Role) -> list[Finding]:
    """What is wrong with the Redis at *url*; nothing while it cannot be reached, which is not for this to judge."""
    try:
        with connect(config.model_copy(update={"result_backend": url}), client_name="graft-fitness") as client:
            return judge(ask(client), url, role)
    except (redis.RedisError, OSError) as error:
        logger.info("%s could not be looked at: %s", without_password(url), error)
        return []


class RedisFitness(bootsteps.StartStopStep):
    """Refuses to start on a Redis that loses messages, and says what else is not as it should be."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        config = settings()
        if config.redis_checks == "off":
            return
        places: dict[str, Role] = {config.backend_url: "results", config.broker_url: "broker"}
        refused = []
        for url, role in places.items():
            for finding in findings(config, url, role):
                text = f"{without_password(url)}: {finding.message}. Remedy: {finding.remedy}"
                if finding.severity == "refuse" and config.redis_checks == "refuse":
                    refused.append(text)
                else:
                    logger.log(logging.INFO if finding.severity == "note" else logging.WARNING, text)
        if refused:
            raise SystemExit("\n".join([*refused, "GRAFT_REDIS_CHECKS=warn starts all the same"]))
