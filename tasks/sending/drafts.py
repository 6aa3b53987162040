"""Messages of plain tasks, made like the one before.

A call of a task passes through some thirty functions of Celery and kombu until it is a message, and all but a dozen
fields come out the same for each call with the same options. So Celery makes the first of them, a :class:`Draft`; the
others are copies of it with fields of their own. What is out of the ordinary, and what others watch, goes Celery's way.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, Final

from celery import Celery
from celery.app.routes import MapRoute
from celery.utils.saferepr import saferepr
from kombu import Producer, Queue
from kombu.entity import maybe_delivery_mode
from kombu.serialization import dumps
from kombu.utils.uuid import uuid

from graft.config.private_names.of_kombu import stock
from graft.config.transport.channel import Channel
from graft.tasks.sending.amqp import Amqp

# What of a call its draft does not say.
OWN: Final = frozenset({
    "task_id", "group_id", "group_index", "root_id", "parent_id", "reply_to", "producer", "result_cls", "add_to_parent",
})  # fmt: skip
# What may be in a draft; with any other option a call goes Celery's way.
DRAFTED: Final = frozenset({
    "task_type", "queue", "routing_key", "exchange", "priority", "serializer", "delivery_mode", "time_limit",
    "soft_time_limit", "ignore_result",
})  # fmt: skip
MOST: Final = 1000  # Drafts in a process; one that names a queue of its own in each call needs no more.
SHORT: Final = 100  # Characters of a text that is shown as it is.
PLAIN: Final = frozenset({int, float, bool, type(None)})
ESCAPED: Final = re.compile(r"['\\]")


class Draft:
    """What the messages of one task with the same options share: what Celery would have published."""

    def __init__(self, published: Mapping[str, Any], queue: Queue, amqp: Amqp) -> None:
        self.queue = str(published["routing_key"])
        self.declaration = hash(queue)
        self.ignore_result = published["headers"]["ignore_result"]
        self._headers = published["headers"]
        self._serializer = published["serializer"]
        self._delivery_mode = maybe_delivery_mode(published["delivery_mode"])
        self._priority = published["priority"] or stock.Channel.default_priority
        self._embed = published["body"][2]
        self._shown = Shown(amqp)

    def message(
        self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], reply_to: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The message of a call, as kombu gives it to its channel."""
        content_type, encoding, body = dumps((args, kwargs, self._embed), self._serializer)
        return {
            "body": body,
            "content-encoding": encoding,
            "content-type": content_type,
            "headers": {
                **self._headers,
                "id": task_id,
                "root_id": options.get("root_id") or task_id,
                "parent_id": options.get("parent_id"),
                "group": options.get("group_id"),
                "group_index": options.get("group_index"),
                "argsrepr": self._shown.args(args),
                "kwargsrepr": self._shown.kwargs(kwargs),
            },
            "properties": {
                "correlation_id": task_id,
                "reply_to": reply_to,
                "delivery_mode": self._delivery_mode,
                "delivery_info": {},
                "priority": self._priority,
            },
        }


class Shown:
    """Celery's texts for arguments; those of simple ones are made at once, where Celery's way takes 20 us."""

    def __init__(self, amqp: Amqp) -> None:
        self._most = amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize
        self._levels = amqp.app.conf.task_repr_maxlevels

    def args(self, args: Sequence[Any]) -> str:
        if type(args) is tuple and self._levels > 0 and all(map(_is_plain, args)):
            text = repr(args)
            if len(text) < self._most[0]:
                return text
        return str(saferepr(args, self._most[0], maxlevels=self._levels))

    def kwargs(self, kwargs: Mapping[str, Any]) -> str:
        return str(saferepr(kwargs, self._most[1], maxlevels=self._levels)) if kwargs else "{}"


def _is_plain(value: Any) -> bool:
    if type(value) in PLAIN:
        return True
    return type(value) is str and len(value) < SHORT and value.isprintable() and not ESCAPED.search(value)


class Drafts:
    """The drafts of one app, and the sending of messages made from them."""

    def __init__(self, app: Celery, send: Callable[..., Any]) -> None:
        self._app = app
        self._is_usable = _is_of(send, Celery)  # Nobody wants to see what is sent.
        self._by_options: dict[Any, Draft | None] = {}
        self._made_with: tuple[Any, ...] = ()

    def send(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """Send such a message: the result object; or None where Celery has to."""
        app = self._app
        amqp: Any = app.amqp
        args, kwargs = () if args is None else args, {} if kwargs is None else kwargs
        if (
            not self._is_usable
            or type(args) not in (tuple, list)
            or type(kwargs) is not dict
            or amqp.is_observed()
            or app.current_worker_task is not None
        ):
            return None
        draft = self._draft(amqp, name, options)
        if draft is None:
            return None
        with app.producer_or_acquire(options.get("producer")) as producer:
            channel = producer.channel
            if not isinstance(channel, Channel) or draft.declaration not in _declared(channel):
                return None
            # Kept in the options: Celery may have to send this call after all.
            task_id = options["task_id"] = options.get("task_id") or uuid()
            message = draft.message(task_id, args, kwargs, options.get("reply_to") or app.thread_oid, options)
            if not draft.ignore_result:
                app.backend.on_task_call(producer, task_id)
            try:
                channel.basic_publish(message, "", draft.queue)
            except (*producer.connection.connection_errors, *producer.connection.channel_errors):
                return None  # Celery tries again, as its policy says, or says what is wrong.
            amqp.producer_pool.note_sent()
            result = channel.burst.result(task_id) if channel.burst is not None else None
        result = result or (options.get("result_cls") or app.AsyncResult)(task_id)
        result.ignored = draft.ignore_result
        return result

    def _draft(self, amqp: Any, name: str, options: Mapping[str, Any]) -> Draft | None:
        made_with = (amqp, amqp.router, *amqp.router.routes, Producer.publish, os.getpid())
        if made_with != self._made_with:
            self._by_options, self._made_with = {}, made_with
        shared = {option: value for option, value in options.items() if option not in OWN}
        key = (name, *shared.items())
        try:
            return self._by_options[key]
        except TypeError:  # A list, for instance.
            return None
        except KeyError:
            if len(self._by_options) >= MOST:
                self._by_options = {}
            draft = self._by_options[key] = self._made(amqp, name, shared)
            return draft

    def _made(self, amqp: Any, name: str, shared: dict[str, Any]) -> Draft | None:
        """A draft, made by Celery; None where it would not do."""
        given = {option: value for option, value in shared.items() if value is not None}
        task = given.pop("task_type", None) or self._app._tasks.get(name)
        if (
            type(amqp) is not Amqp
            or not DRAFTED.issuperset(given)
            or getattr(task, "graft_unique", None)
            or not _is_of(Producer.publish, Producer)
            or not all(isinstance(route, MapRoute) for route in amqp.router.routes)
        ):
            return None
        headers = {each: given.pop(each, None) for each in ("time_limit", "soft_time_limit", "ignore_result")}
        route = amqp.router.route(given, name, (), {}, task)
        published = amqp.published(name, amqp.create_task_message("", name, **headers), route)
        queues: list[Any] = published["declare"] or []
        is_usual = not published["exchange"] and not published["compression"] and isinstance(published["body"], tuple)
        if not is_usual or len(queues) != 1 or not queues[0].can_cache_declaration:
            return None
        return Draft(published, queues[0], amqp)


def _declared(channel: Channel) -> Any:
    """What kombu has declared over this connection, by hash."""
    connection = channel.connection
    return connection.client.declared_entities if connection is not None else ()


def _is_of(function: Any, owner: type) -> bool:
    """Whether *function* is the one that *owner*'s module has, wrapped by nobody (tracers do)."""
    function = getattr(function, "__func__", function)
    return isinstance(function, FunctionType) and function.__globals__ is vars(sys.modules[owner.__module__])
