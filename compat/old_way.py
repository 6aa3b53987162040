"""Who makes the calls of old facades: rule R2 alone, or somebody who answers them the old way and looks on.

A facade asks :func:`watcher` once for each call that it is given. Where there is one, the call stays in this process,
and the watcher's own callable takes the place of the caller's. So facades know nothing of shadow and canary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from graft.config.deployment import existing, part

if TYPE_CHECKING:
    from graft.tasks.callables.references import FunctionRef

REASON: Final = "the old way answers (shadow or canary)"


class Watched(Protocol):
    """A callable in the caller's place; each of its calls has a number, by which it is chosen or not."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def spread(self, items: Sequence[Any], *, unpack: bool) -> tuple[Callable[..., Any], list[Any]]:
        """A callable and items for it, as ``(args, kwargs)`` pairs, so that each call of *items* has its number now."""
        ...


class Watcher(Protocol):
    """Whoever looks on."""

    def watch(
        self,
        func: Callable[..., Any],
        function: FunctionRef | None,
        reason: str,
        *,
        shown: Callable[..., Any] | None = None,
        on_loop: bool = False,
    ) -> Watched:
        """*func* as it is to be called in this process.

        Args:
            function: how it travels to a worker; None where rule R2 keeps it here.
            reason: why rule R2 decides so.
            shown: the caller's own function, where *func* only wraps it.
            on_loop: who calls it awaits what comes back, if it can be awaited.
        """
        ...

    def watch_pool(self, make_twin: Callable[[str], Any], dumps: Callable[[Any], Any] | None = None) -> Any:
        """Who chooses the calls of one of the standard library's pools (compat/guests/twin.py).

        Args:
            make_twin: for ``shadow`` or ``canary``, an executor whose processes are guests, or why there is none.
            dumps: how the pool's calls are pickled, where that is not pickle's way.
        """
        ...

    def after_fork(self) -> None: ...


class _Chosen:
    """The watcher of this process."""

    def __init__(self) -> None:
        self.watcher: Watcher | None = None

    def after_fork(self) -> None:
        if self.watcher is not None:
            self.watcher.after_fork()


def watcher() -> Watcher | None:
    """The watcher of this process, if there is one."""
    chosen = existing(_Chosen)
    return None if chosen is None else chosen.watcher


def set_watcher(found: Watcher | None) -> None:
    """Have *found* look on from now on, or nobody."""
    part(_Chosen).watcher = found
