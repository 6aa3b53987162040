"""Calls of which there is one at a time, in a worker: a run takes the key of its call again, and its end gives it back.

    push (transport/unique.py) ─► run begins: has its call the key? ─► result stored and key given back, in one step
                                     └ no: it was replaced, or a copy of it has ended: it does not run

A call whose message is nowhere in Redis has lost its key: whoever makes the next one looks, a minute after the last
sign of life.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import redis

from graft.config import keys
from graft.config.deployment import settings
from graft.config.redis_client import broker, shared
from graft.config.transport.unique import UNIQUE, HeldError, Terms, hold_ms
from graft.tasks.delivery import lease
from graft.tasks.queues import locate

logger = logging.getLogger(__name__)

SILENCE: Final = 60.0  # Seconds without a sign of a call after which it is searched for.


def may_begin(request: Any) -> bool:
    """Whether the run of *request* is still the call that has its key. Asks Redis only where the call has one.

    Raises:
        LeaseLost: another worker has its message.
    """
    terms = Terms.of(request)
    if terms is None:
        return True
    found = _ask(terms, ["begin", request.id, hold_ms()], request)
    if found < 0:
        lease.warn_of_loss(request.id)
        raise lease.LeaseLost("another worker has this task")
    return bool(found)


def end(request: Any) -> None:
    """The call of *request* has ended: give its key back, unless another worker has its message."""
    if (terms := Terms.of(request)) is not None:
        _ask(terms, ["end", request.id, terms.keep_ms], request)


def end_of(terms: Terms, task_id: str) -> None:
    """The call *task_id* has ended, or never will run: give its key back."""
    _ask(terms, ["end", task_id, terms.keep_ms])


def end_elsewhere(request: Any) -> None:
    """The same once what came of it is stored, where that is another server; else the step that stores it does so."""
    if not is_beside_results():
        end(request)


def is_beside_results() -> bool:
    """Whether keys are on the server that results are stored on, so that one step may do both."""
    return settings().backend_url == settings().broker_url


def header_of(request: Any) -> list[Any] | None:
    """The terms of *request* for its dead letter."""
    terms = Terms.of(request)
    return None if terms is None else terms.header


def is_lost(held: HeldError) -> bool:
    """Whether the call that has the key is nowhere; its key is free then."""
    if held.state == "ended" or held.silent < SILENCE:
        return False
    try:
        with broker() as client:
            for _ in range(2):  # One that moved at the wrong moment is missed by one search.
                if held.holder not in locate.missing([held.holder], client):
                    UNIQUE([held.terms.name], ["seen", held.holder], client)
                    return False
            UNIQUE([held.terms.name], ["end", held.holder, 0], client)
    except (redis.RedisError, OSError) as error:
        logger.debug("could not search for the call %s: %s", held.holder, error)
        return False
    logger.warning("the call %s is nowhere in Redis; its unique key %r is free", held.holder, held.terms.key)
    return True


def _ask(terms: Terms, arguments: list[Any], request: Any = None) -> Any:
    tag = getattr(request, "graft_delivery", None)
    names = [terms.name, *([keys.RETURNED + tag] if tag else [])]  # Both are on the broker.
    if is_beside_results():
        return UNIQUE(names, arguments, shared())
    with broker() as client:
        return UNIQUE(names, arguments, client)
