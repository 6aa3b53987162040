"""Checks before a worker starts: without the deployment's key, or on a Redis that would lose messages, it does not."""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery import bootsteps

from graft.config.deployment import settings
from graft.config.redis_checks import Finding, judge
from graft.config.redis_client import connect
from graft.config.redis_server import Role, ask
from graft.config.settings import Settings, without_password

logger = logging.getLogger(__name__)


class SigningKeyPreflight(bootsteps.StartStopStep):
    """Refuses to start a worker that could open no message."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        if settings().signing == "require" and not settings().signing_keys:
            raise SystemExit("a worker needs the deployment's key: set GRAFT_SIGNING_KEY, the same as for its callers")


class RedisPreflight(bootsteps.StartStopStep):
    """Refuses to start on a Redis that loses messages (config/redis_checks.py), and logs its other faults."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        config = settings()
        if config.redis_checks == "off":
            return
        roles: dict[str, Role] = {config.backend_url: "results", config.broker_url: "broker"}
        refused = []
        for url, role in roles.items():
            for finding in findings(config, url, role):
                text = f"{without_password(url)}: {finding.message}. Remedy: {finding.remedy}"
                if finding.severity == "refuse" and config.redis_checks == "refuse":
                    refused.append(text)
                else:
                    logger.log(logging.INFO if finding.severity == "note" else logging.WARNING, text)
        if refused:
            raise SystemExit("\n".join([*refused, "To start all the same, set GRAFT_REDIS_CHECKS=warn"]))


def findings(config: Settings, url: str, role: Role) -> list[Finding]:
    """The faults of the Redis at *url*; none while it cannot be reached, for which the worker waits."""
    try:
        with connect(config.model_copy(update={"result_backend": url}), client_name="graft-preflight") as client:
            return judge(ask(client), url, role)
    except (redis.RedisError, OSError) as error:
        logger.info("%s could not be checked: %s", without_password(url), error)
        return []
