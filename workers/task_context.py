"""Whose ``self.request`` is it? Of the task whose context this is, in whatever thread or coroutine it is asked.

Celery keeps the running task and its request on stacks per thread (per greenlet, where that library is installed). A
coroutine runs on the loop's thread, its parts in asyncio tasks and helper threads of their own; what they all share is
the context (:mod:`contextvars`), which asyncio copies for each. So the stacks are told apart by a mark in the context.
"""

from __future__ import annotations

import weakref
from contextvars import Context, ContextVar, copy_context
from typing import Any

from celery import _state
from celery.utils.threads import LocalStack, get_ident


class Ended(BaseException):
    """Unwinds a run that has been answered for already: terminated, timed out, or given back."""


class Owner:
    """Marks the context of one run of one task. Small on purpose: what a task leaves behind may hold on to it."""

    __slots__ = ("__weakref__", "id", "name", "run", "strays")

    def __init__(self, name: str, task_id: str, run: Any = None) -> None:
        self.name = name
        self.id = task_id
        self.run = run  # Until the run has ended.
        self.strays: weakref.WeakSet[Any] | None = None

    def __str__(self) -> str:
        return f"{self.name}[{self.id}]"


_owner: ContextVar[Any] = ContextVar("graft_task", default=None)


def owner() -> Any:
    """The mark of the task whose context this is, or None."""
    return _owner.get()


def _ident() -> Any:
    return _owner.get() or get_ident()


def own(context: Context, mark: Any) -> None:
    """Have *context* belong to *mark*."""
    context.run(_owner.set, mark)


def for_coroutine() -> Context:
    """A copy of this context whose coroutine still finds the task that runs here."""
    context = copy_context()
    own(context, _ident())
    return context


def share_stack(stack: Any) -> None:
    """Have *stack* told apart by context. Without Celery's own kind of stack nothing changes."""
    if isinstance(stack, LocalStack) and hasattr(stack, "__ident_func__"):
        stack.__ident_func__ = _ident


def share_task_stack() -> None:
    """The same for the stack behind ``current_task``."""
    share_stack(_state._task_stack)


def forget(mark: Any, *stacks: Any) -> None:
    """Drop what *stacks* hold for *mark*, whose run will never pop it."""
    for stack in (_state._task_stack, *stacks):
        stack._local.__storage__.pop(mark, None)
