"""Makes ``self.request`` and ``current_task`` those of the task whose context this is, in any thread or coroutine.

Celery keeps the running task and its request on stacks per thread (per greenlet, where that library is installed). A
coroutine runs on the loop's thread, its parts in asyncio tasks and helper threads of their own; what they all share is
the context (:mod:`contextvars`), which asyncio copies for each. So the stacks are chosen by a mark in the context.
"""

from __future__ import annotations

import weakref
from contextvars import Context, ContextVar, copy_context
from typing import Any

from celery import _state
from celery.utils.threads import LocalStack, get_ident

from graft.tasks.worker_runtime import Ended

__all__ = ["Ended", "Owner", "for_coroutine", "forget", "own", "owner", "share_stack", "share_task_stack"]


class Owner:
    """Marks the context of one run of one task. Small: coroutines that a task leaves behind may keep it alive."""

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
    """Have *stack* chosen by context. A stack that is not of Celery's own kind is left as it is."""
    if isinstance(stack, LocalStack) and hasattr(stack, "__ident_func__"):
        stack.__ident_func__ = _ident


def share_task_stack() -> None:
    """The same for the stack behind ``current_task``."""
    share_stack(_state._task_stack)


def forget(mark: Any, *stacks: Any) -> None:
    """Drop the entries of *mark* in *stacks*: its run will never pop them."""
    for stack in (_state._task_stack, *stacks):
        stack._local.__storage__.pop(mark, None)
