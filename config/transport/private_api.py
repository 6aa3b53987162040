"""The private names of Celery and kombu that the message path needs, asked for at start.

Every module that uses such a name asks for it with :func:`require`; those of the transport stand here.
"""

from __future__ import annotations

import dis
from types import FunctionType, ModuleType
from typing import Any, Final

import celery
import kombu
import kombu.transport.redis
import kombu.transport.virtual
import redis

# kombu annotates a part of its functions, which is worse than none.
stock: Any = kombu.transport.redis
virtual: Any = kombu.transport.virtual


# As in pyproject.toml. `python -m graft.scripts.versions` runs the tests at both ends; docs/versions.md has the rest.
SUPPORTED: Final = ("celery>=5.7,<5.8", "kombu>=5.7,<5.8", "redis>=6.4,<9")


class UnknownVersionError(RuntimeError):
    """Celery or kombu lacks a private name that the message path leans on."""


def require(owner: type | ModuleType, *names: str) -> None:
    """Refuse to start on a Celery or kombu whose *owner* lacks one of *names*, and does not set it when made."""
    made_by = [vars(base).get("__init__") for base in getattr(owner, "__mro__", ())]
    steps = [step for maker in made_by if isinstance(maker, FunctionType) for step in dis.get_instructions(maker)]
    known = {step.argval for step in steps if step.opname == "STORE_ATTR"}
    missing = [name for name in names if name not in known and not hasattr(owner, name)]
    if missing:
        raise UnknownVersionError(
            f"{owner!r} has no {', '.join(missing)}: celery {celery.__version__} with kombu {kombu.__version__} and "
            f"redis-py {redis.__version__} is not known to us. Supported are {', '.join(SUPPORTED)}: "
            f"pip install {' '.join(map(repr, SUPPORTED))}"
        )


def require_transport() -> None:
    """Refuse to start on a kombu whose Redis transport lacks a name that ours uses or replaces."""
    require(
        stock.Channel,
        *("_brpop_start", "_brpop_read", "_receive_one", "_deliver_fanout_message", "_queue_cycle", "_in_poll"),
        *("_in_listen", "_flush_brpop_reauth", "_do_restore_message", "_lookup", "_inplace_augment_message"),
        *("_get_message_priority", "_pool", "_get_pool", "_disconnect_pools", "_close_clients", "conn_or_acquire"),
        *("auto_delete_queues", "_expires"),
    )
    require(stock.SentinelChannel, "_sentinel_managed_pool", "from_transport_options")
    require(stock.QoS, "restore_visible", "restore_by_tag", "unacked_key", "_delivered", "_dirty", "_quick_append")
    require(virtual.Transport, "_deliver", "close_channel", "connection_errors")
