"""Settings -> Celery's options. The only file that spells Celery's keys."""

from __future__ import annotations

from typing import Any

from kombu.entity import Queue

from graft.config import redbeat
from graft.config.queues import MIDDLE_PRIORITY, PRIORITY_STEPS, own_queues
from graft.config.settings import Settings


def defaults(config: Settings) -> dict[str, Any]:
    """What any hardened app has instead of Celery's own defaults. What the app has set itself counts."""
    return {
        "broker_connection_timeout": config.connect_timeout,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Delivery: at least once.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_consumer": "graft.workers.consumer:HardenedConsumer",
        "worker_autoscaler": "graft.workers.autoscale:Autoscaler",
        "worker_eta_task_limit": 1000,
        # Results.
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
        "redis_socket_timeout": 10.0,  # Celery: 120 s, in which a caller hears nothing.
    }


def options(config: Settings) -> dict[str, Any]:
    """What our own app is configured with, beside that."""
    return {
        "broker_url": config.broker_url,
        "result_backend": config.backend_url.replace("redis+socket://", "socket://"),
        # Neither "retry" nor "retry_on_timeout" may appear here: either one switches pipelined publishing off.
        "broker_transport_options": {
            "priority_steps": list(PRIORITY_STEPS), "queue_order_strategy": "priority", **_sentinel(config),
        },
        "include": [name.strip() for name in config.include.split(",") if name.strip()],
        # What travels. Signed pickles ride inside JSON strings (tasks/codec.py); nothing else is ever unpickled.
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "task_time_limit": config.hard_time_limit,
        "task_soft_time_limit": config.soft_time_limit,
        "result_expires": config.result_ttl,
        # Queues.
        "task_queues": [Queue(queue.name, routing_key=queue.name) for queue in own_queues(config.queues)],
        "task_default_queue": "default",
        "task_default_routing_key": "default",
        "task_default_priority": MIDDLE_PRIORITY,
        "task_create_missing_queues": False,
        "task_routes": _poc_routes() if config.poc_tasks else {},
        "timezone": "UTC",
        "enable_utc": True,
        **redbeat.options(config),
        # Processes.
        # Messages, each of which may hold many items; GRAFT_ITEMS_PER_CHILD counts items (workers/recycling.py).
        "worker_max_tasks_per_child": 1000,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
    }  # fmt: skip


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
