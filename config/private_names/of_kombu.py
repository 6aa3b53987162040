"""Of kombu 5.7: its Redis transport, which ours derives from, and its event loop."""

from __future__ import annotations

from typing import Any, Final

import kombu.transport.redis
import kombu.transport.virtual

from graft.config.private_names import Names

# kombu annotates a part of its functions, which is worse than none.
stock: Any = kombu.transport.redis
virtual: Any = kombu.transport.virtual

TRANSPORT: Final[Names] = {
    # Replaced or called by config/transport/channel.py.
    "kombu.transport.redis:Channel": (
        *("_brpop_start", "_brpop_read", "_receive_one", "_deliver_fanout_message", "_queue_cycle", "_in_poll"),
        *("_in_listen", "_flush_brpop_reauth", "_lookup", "_inplace_augment_message"),
        *("_get_message_priority", "_pool", "_get_pool", "_disconnect_pools", "_close_clients", "conn_or_acquire"),
        *("auto_delete_queues", "_expires", "_q_for_pri", "_queue_bind", "_put", "_size", "_create_client"),
    ),
    "kombu.transport.redis:SentinelChannel": ("_sentinel_managed_pool", "from_transport_options"),
    # Replaced by config/transport/qos.py, which sweeps by the server's time.
    "kombu.transport.redis:QoS": (
        *("restore_visible", "restore_by_tag", "restore_unacked", "_vrestore_count"),
        *("unacked_key", "unacked_index_key", "_delivered", "_dirty", "_quick_append"),
    ),
    "kombu.transport.virtual:Transport": ("_deliver", "close_channel", "connection_errors"),
    # tasks/sending/producers.py: a wait for a producer has a bound.
    "kombu.pools:ProducerPool": ("_acquire_connection", "prepare", "limit", "connections"),
    "kombu.transport.virtual:Message": ("_raw",),  # What the quarantine keeps.
}
WORKER: Final[Names] = {
    # An idle process gets its task at once (workers/prefork_patch.py); the io lane's loop (workers/aio_pool.py).
    "kombu.asynchronous.hub:Hub": ("consolidate_callback", "call_soon", "on_tick", "_pop_ready", "fire_timers"),
    "kombu.asynchronous.timer:Timer": ("_queue",),  # Cancelled timers are taken out (workers/bootsteps/pool_upkeep.py).
}
