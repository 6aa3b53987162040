"""``@app.task(graft_unique=…)`` and ``apply_async(unique=…)``: of a plain task there is one call at a time under a key.

    graft_unique=True                   one for each set of arguments
    graft_unique="account"              one for each value of that parameter; a tuple of names for several
    graft_if_running="attach"           "drop" or "replace"; graft_unique_for=60: seconds for which it stays unique

Each can be given for one call too: ``apply_async(unique="nightly", if_running="drop", unique_for=60)``.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final

from celery.app.task import Context
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid

from graft.config.transport.unique import HEADER, HeldError, Terms
from graft.tasks.queues import unique
from graft.tasks.sending.drafts import Drafts

FOLLOWED: Final = ("task_id", "link", "link_error", "chain", "chord", "group_id")


def sending(app: Any) -> Callable[..., Any]:
    """The ``send_task`` of *app*, which obeys these options."""
    send = app.send_task
    drafts = Drafts(app, send)

    @wraps(send)
    def send_task(name: str, args: Any = None, kwargs: Any = None, *positional: Any, **options: Any) -> Any:
        if not positional and (sent := drafts.send(name, args, kwargs, options)) is not None:
            return sent
        task = options.get("task_type") or app.tasks.get(name)
        terms = _terms(task, name, args, kwargs, options)
        if terms is None:
            return send(name, args, kwargs, *positional, **options)
        options["headers"] = {**(options.get("headers") or {}), HEADER: terms.header}
        while True:
            try:
                return send(name, args, kwargs, *positional, **options)
            except HeldError as held:
                if not unique.is_lost(held):
                    return _answer(app, name, held, options)

    return send_task


def _terms(task: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Terms | None:
    asked, if_running = options.pop("unique", None), options.pop("if_running", None)
    unique_for = options.pop("unique_for", None)
    by = getattr(task, "graft_unique", None)
    if (kept := Terms.of(options.get("headers") or {})) is not None:  # It runs again.
        return kept
    if asked is None and not by:
        return None
    key = asked if asked is not None else _key_of(task, by, args or (), kwargs or {})
    terms = Terms.checked(
        key, if_running or getattr(task, "graft_if_running", "attach"),
        getattr(task, "graft_unique_for", 0.0) if unique_for is None else unique_for,
    )  # fmt: skip
    return terms.of_callable(name)


def _key_of(task: Any, by: Any, args: Any, kwargs: Mapping[str, Any]) -> str:
    """A digest of the arguments that *by* names, or of all."""
    names = None if by is True else (by,) if isinstance(by, str) else tuple(by)
    try:
        bound = inspect.signature(task.run).bind(*args, **kwargs)
    except TypeError:  # The worker says so, as ever.
        return _digest([list(args), dict(kwargs)])
    bound.apply_defaults()
    if names is None:
        return _digest(bound.arguments)
    missing = [each for each in names if each not in bound.arguments]
    if missing:
        raise ValueError(
            f"graft_unique={by!r} of {task.name} must name its parameters ({', '.join(bound.arguments)}), or be True"
        )
    return _digest([bound.arguments[each] for each in names])


def _digest(value: Any) -> str:
    return hashlib.sha256(str(dumps(value, sort_keys=True)).encode()).hexdigest()[:32]


def _answer(app: Any, name: str, held: HeldError, options: Mapping[str, Any]) -> Any:
    """The result object of a call that was not sent: that of the call that has its key, or one that says REVOKED.

    The latter where others wait for this very call: its id has been given to them, so no other can stand for it.
    """
    result = options.get("result_cls") or app.AsyncResult
    if held.terms.if_running != "drop" and not any(options.get(each) for each in FOLLOWED):
        return result(held.holder)
    task_id = options.get("task_id") or uuid()
    request = Context(
        id=task_id, task=name, group=options.get("group_id"), group_index=options.get("group_index"),
        chord=options.get("chord"), root_id=options.get("root_id"), parent_id=options.get("parent_id"),
    )  # fmt: skip
    app.backend.mark_as_revoked(
        task_id, f"dropped: {held}", request=request, store_result=not options.get("ignore_result")
    )
    return result(task_id)
