"""Of Celery 5.7: what its worker does when a connection is lost, a process ends or a result is stored."""

from __future__ import annotations

from typing import Final

from graft.config.private_names import Names

APP: Final[Names] = {
    "celery.app.base": ("_register_app",),  # `python -m graft harden` meets every app as it is made.
    # tasks/results/celery_backend.py: fewer commands for each result, and no pause after it.
    "celery.backends.asynchronous": ("sleep",),
    "celery.backends.redis:ResultConsumer": (
        *("_pubsub", "_reset_sync", "_locked", "_reconnect_pubsub", "_flush_pending_unsubscribe"),
        *("_consume_from", "_get_key_for_task", "_decode_result", "_drain_one", "_wait_for_pending"),
    ),
    "celery.app.base:Celery": ("_tasks",),  # tasks/sending/drafts.py
    "celery.canvas:group": ("_apply_tasks",),  # tasks/sending/group_sending.py: many messages in one round trip.
}
WORKER: Final[Names] = {
    # Replaced by workers/consumer.py: messages outlive the connection that brought them.
    "celery.worker.consumer:Consumer": (
        *("on_connection_error_after_connected", "on_connection_error_before_connected", "on_close", "on_ready"),
        *("connect", "ensure_connected", "create_task_handler", "on_unknown_task", "connection_for_read"),
        "cancel_active_requests",
    ),
    # workers/due_times.py: Redis's clock says what has expired; workers/outbox_patch.py.
    "celery.worker.request:Request": ("maybe_expire", "_success_was_stored", "_context"),
    # Celery 5.6 empties the worker's timer when the connection is lost: tasks that run on would lose their time limits.
    "celery.worker.loops": ("_cancel_timer_entries",),
    "celery.apps.worker": ("_shutdown_handler",),  # workers/shutdown.py
    "celery.worker:WorkController": ("wait_for_soft_shutdown",),
    # workers/prefork_patch.py: no task is forgotten between the loop and a pipe.
    "celery.concurrency.asynpool:AsynPool": (
        *("_flush_writer", "_active_writers", "_cache", "outbound_buffer", "_all_inqueues", "_busy_workers"),
        *(
            "_active_writes",
            "_maxtasksperchild",
            "_fileno_to_inq",
            "_fileno_to_outq",
            "_on_ready_counters",
            "_mark_worker_as_available",
            "_event_process_exit",
            "_untrack_child_process",
        ),
    ),
    "celery.concurrency.asynpool": ("_get_job_writer", "_select"),
    # workers/result_patch.py and workers/aio/backend_patch.py: one round trip for a result.
    "celery.backends.redis:RedisBackend": (
        *("get", "_set", "ensure", "_store_result", "_get_result_meta", "_MAX_STR_VALUE_SIZE"),
        *("on_chord_part_return", "chord_error_from_stack", "_call_task_errbacks"),
    ),
    # workers/outbox_patch.py: what follows from a run leaves with its acknowledgement.
    "celery.backends.base:Backend": ("mark_as_done", "mark_as_failure", "_call_task_errbacks"),
    "celery.app.task:Task": ("retry", "on_replace"),
    "celery.app.amqp:AMQP": ("_create_task_sender", "_retry_publish"),  # tasks/sending/amqp.py
}
