"""Reads the settings that ``rules`` judges: Celery's options, the environment, files with secrets, Redis, workers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil

from graft.config import redis_checks
from graft.config.deployment import settings
from graft.config.queues import table
from graft.config.redis_client import broker, connect, server_time, shared
from graft.config.redis_server import ask
from graft.config.settings import Settings, unknown
from graft.scripts.commands.doctor.rules import Grace, Reader, Setup
from graft.tasks.guard import is_guarded
from graft.tasks.health import beat_schedules, beat_ticks
from graft.tasks.health.beat_schedules import BeatSchedule
from graft.tasks.monitoring import unsigned_senders, worker_registry
from graft.tasks.queues import depth, existing, pause

OPTIONS: Final = (
    "task_acks_late", "task_reject_on_worker_lost", "task_retry_on_worker_lost", "task_time_limit",
    "task_soft_time_limit", "broker_transport_options", "broker_url", "broker_read_url", "worker_consumer",
    "worker_eta_task_limit", "task_default_priority", "worker_prefetch_multiplier", "worker_disable_prefetch",
    "accept_content", "task_queues", "beat_schedule", "task_routes",
)  # fmt: skip
SECRET: Final = re.compile(
    rb"(?im)^\s*(export\s+)?\w*(KEY|SECRET|PASSWORD|BASIC_AUTH|BROKER_URL|BACKEND)\w*\s*[=:]\s*\S"
)
UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def static(app: Any, environ: Mapping[str, str], folder: Path) -> Setup:
    """The settings that can be read without Redis. *folder* may hold ``.env`` and ``docker-compose.yml``."""
    config = settings()
    app.loader.import_default_modules()
    return Setup(
        conf={name: app.conf.get(name) for name in OPTIONS},
        graft={
            "signing_keys": config.signing_keys,
            "mode": config.mode,
            "drain_timeout": config.drain_timeout,
            "soft_time_limit": config.soft_time_limit,
            "visibility_timeout": config.visibility_timeout,
            "signing": config.signing,
        },
        app={
            "is_ours": app.main == "graft",
            "makes_queues": table().may_be_made,
            "acks_early": tuple(
                sorted(task.name for task in app.tasks.values() if is_guarded(task) and not task.acks_late)
            ),
        },
        environ=environ,
        misspelt=tuple(unknown(environ)),
        tasks=frozenset(app.tasks),
        queues=table().names,
        files=secret_files(environ, folder),
        grace=stop_graces(folder),
        flowers=flowers(),
    )


def live(setup: Setup) -> Setup:
    """*setup* with the state of Redis and the workers. Raises RedisError when Redis does not answer."""
    config = settings()
    client = shared()
    readers = tuple(Reader(worker.name, tuple(worker.queues)) for worker in worker_registry.workers(client))
    return replace(
        setup,
        queues=tuple(dict.fromkeys([*setup.queues, *existing.names()])),
        readers=readers,
        unsigned=unsigned_senders.of_the_last_day(client),
        waiting=depth.waiting(),
        paused=pause.paused(client),
        beats=live_beats(client),
        sent={name: (one.task, one.at) for name, one in beat_schedules.sent(client).items()},
        servers=servers(config),
    )


def live_beats(client: Any) -> tuple[BeatSchedule, ...]:
    """The schedules of the Beats that have sent something within ``health_silence``."""
    alive = beat_ticks.alive(client, server_time(client), settings().health_silence)
    return tuple(one for one in beat_schedules.schedules(client) if one.beat in alive)


def servers(config: Settings) -> tuple[tuple[str, redis_checks.Finding], ...]:
    """Findings about the broker's Redis, and about that of the result backend if it is another."""
    with broker() as client:
        found = [("broker", each) for each in redis_checks.judge(ask(client), config.broker_url, "broker")]
    if config.backend_url != config.broker_url:
        with closing(connect(config)) as client:
            facts = ask(client)
            found += [("results", each) for each in redis_checks.judge(facts, config.backend_url, "results")]
    return tuple(found)


def secret_files(environ: Mapping[str, str], folder: Path) -> dict[str, int]:
    """Files in *folder* and files named by ``…_FILE`` variables that hold a secret, with their modes."""
    named = [
        Path(value)
        for name, value in environ.items()
        if name.startswith(("GRAFT_", "CELERY_")) and name.endswith("_FILE")
    ]
    found = {}
    for path in [*folder.glob(".env"), *folder.glob("*.env"), *named]:
        try:
            if path in named or SECRET.search(path.read_bytes()[: 1 << 20]):
                found[str(path)] = path.stat().st_mode
        except OSError:
            continue
    return found


def stop_graces(folder: Path) -> dict[str, Grace]:
    """The stop_grace_period of each worker service in the Compose file. An ``x-…`` block counts like a service."""
    found = {}
    for path in [*folder.glob("docker-compose*.yml"), *folder.glob("compose*.y*ml")]:
        block, service, text = "", "", path.read_text(encoding="utf-8", errors="replace")
        drain = re.search(r"GRAFT_DRAIN_TIMEOUT[=:]\s*\W*(?:GRAFT_DRAIN_TIMEOUT:-)?([\d.]+)", text)
        for line in text.splitlines():
            if head := re.match(r"([\w.-]+):", line):
                block = service = head[1]
            elif block == "services" and (head := re.match(r"  ([\w.-]+):", line)):
                service = head[1]
            grace = re.match(r"\s+stop_grace_period:\s*[\"']?((?:\d+[hms])+)", line)
            if grace and "worker" in service:
                parts = re.findall(r"(\d+)([hms])", grace[1])
                seconds = sum(int(number) * UNITS[unit] for number, unit in parts)
                found[f"{path.name}, {service}"] = Grace(seconds, float(drain[1]) if drain else None)
    return found


def flowers() -> tuple[tuple[str, ...], ...]:
    """The command lines of this user's Flowers on this machine."""
    found = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        argv = process.info["cmdline"] or []
        owner = process.info["uids"]
        if "flower" in argv and any("celery" in word for word in argv[:4]) and owner and owner.real == os.getuid():
            found.append(tuple(argv))
    return tuple(found)
