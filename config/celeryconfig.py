"""Settings -> Celery's options. The only file that spells Celery's keys."""

from __future__ import annotations

from typing import Any

from kombu.entity import Queue

from graft.config import redbeat
from graft.config.beat_schedule import beat_schedule
from graft.config.queues import MIDDLE_PRIORITY, PRIORITY_STEPS, QUEUES
from graft.config.settings import Settings
from graft.config.transport import transport_url


def options(config: Settings) -> dict[str, Any]:
    """Celery's configuration for *config*, the same for clients, workers, Beat and Flower."""
    return {
        "broker_url": transport_url(config.broker_url),
        # Celery lets the environment's CELERY_BROKER_URL override broker_url, and with it our transport.
        "broker_read_url": transport_url(config.broker_url),
        "broker_write_url": transport_url(config.broker_url),
        "result_backend": config.backend_url.replace("redis+socket://", "socket://"),
        "broker_connection_timeout": config.connect_timeout,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "visibility_timeout": config.visibility_timeout,
            # Celery sweeps every interval x throttle seconds: 10 x 10 by default.
            "unacked_restore_interval": max(0.5, min(5.0, config.visibility_timeout / 4)),
            "unacked_restore_throttle": 1,
            "unacked_restore_limit": 200,
            # The holder of this lock may be killed; no message is recovered until it expires (default 300 s).
            "unacked_mutex_expire": 15,
            "priority_steps": list(PRIORITY_STEPS),
            "queue_order_strategy": "priority",
            "socket_timeout": 10,
            **_sentinel(config),
            "socket_connect_timeout": config.connect_timeout,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # Neither "retry" nor "retry_on_timeout" may appear here: either one switches pipelined publishing off.
        },
        # What travels. Signed pickles ride inside JSON strings (tasks/codec.py); nothing else is ever unpickled.
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        # Delivery: at least once.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_time_limit": config.hard_time_limit,
        "task_soft_time_limit": config.soft_time_limit,
        "task_publish_retry": False,  # The publisher resends whole envelopes under their own ids.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_consumer": "graft.workers.consumer:HardenedConsumer",
        "worker_autoscaler": "graft.workers.autoscale:Autoscaler",
        "worker_eta_task_limit": 1000,
        # Results.
        "result_expires": config.result_ttl,
        "result_backend_always_retry": True,
        "result_backend_max_retries": 100,
        # Twice this is how long a process may be sending a chord's body before another may.
        "result_chord_join_timeout": 10.0,
        "result_backend_transport_options": {
            **_sentinel(config),
            "socket_connect_timeout": config.connect_timeout,
            "retry_policy": {"max_retries": 5, "interval_start": 0, "interval_step": 0.2, "interval_max": 1},
        },
        "redis_socket_connect_timeout": config.connect_timeout,
        # Queues.
        "task_queues": [Queue(queue.name, routing_key=queue.name) for queue in QUEUES],
        "task_default_queue": "default",
        "task_default_routing_key": "default",
        "task_default_priority": MIDDLE_PRIORITY,
        "task_create_missing_queues": False,
        "task_routes": _poc_routes() if config.poc_tasks else {},
        # Beat.
        "beat_schedule": beat_schedule(config),
        "timezone": "UTC",
        "enable_utc": True,
        **redbeat.options(config),
        # Processes.
        # Messages, each of which may hold many items; GRAFT_ITEMS_PER_CHILD counts items (workers/recycling.py).
        "worker_max_tasks_per_child": 1000,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
    }


def _poc_routes() -> dict[str, dict[str, str]]:
    return {
        f"{old_module}{task}": {"queue": queue}
        for old_module in ("", "celery_migration_poc.")
        for task, queue in (
            ("process_item", "default"),
            ("batch_process", "batch"),
            ("heavy_computation", "heavy"),
            ("cleanup_old_results", "maintenance"),
            ("collect_metrics", "maintenance"),
        )
    }


def _sentinel(config: Settings) -> dict[str, Any]:
    return {"master_name": config.sentinel_master} if config.sentinel_master else {}
