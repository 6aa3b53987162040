"""Shadow and canary: before a program moves to the cluster, see whether that would change anything.

Under shadow the old way answers, in the caller's process, and a share of the calls also runs in the cluster; both runs
are compared. Under canary the cluster answers a share. ``python -m graft.compat --shadow 0.1 program.py`` asks for it,
or :func:`install` in a program that uses the facades. Imports config and tasks, and of compat what decides where a
call runs; the facades know only ``compat/old_way.py``.

    plan ── draw ──► live ── observation ──► sender ═ the road ═► on_worker          switch ◄── Redis
                       └──────── record ◄──── compare ◄──┘                           verdict ◄── record
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from graft.compat import old_way
from graft.compat.placement import is_local
from graft.compat.shadow.plan import Kind, Plan, never_shadow
from graft.tasks.worker_runtime import in_worker

if TYPE_CHECKING:
    from graft.compat.shadow.live import Live
    from graft.compat.shadow.verdicts import Verdict

__all__ = ["Plan", "install", "installed", "never_shadow", "uninstall", "verdict"]


def install(
    shadow: float = 0.0,
    canary: float = 0.0,
    *,
    program: str = "program",
    seed: str = "0",
    only: Iterable[str] = (),
    leave_out: Iterable[str] = (),
    equal: str = Plan.equal,
    tolerance: float = 0.0,
    ignore: Iterable[Kind] = (),
    files: Iterable[str] = (),
    limit: float = Plan.limit,
    timeout: float = Plan.timeout,
    outstanding: int = Plan.outstanding,
) -> None:
    """Have the old way answer this process's calls of the facades, and the cluster run or answer a share of them.

    A SHADOWED CALL RUNS TWICE, with all its effects; see :func:`never_shadow`. Call this before the facades are used.
    The shares can be changed while the program runs: ``celery -A graft shadow set PROGRAM``. Calls with ``place=``
    are made where that says, and not compared. For the other arguments see :class:`graft.compat.shadow.plan.Plan`.

    Raises:
        ValueError: a share is not one, or the deployment keeps everything in this process.
        RuntimeError: it is installed already, or this process is a worker.
    """
    start(
        Plan(
            shadow, canary, program, seed, tuple(only), tuple(leave_out), equal, tolerance, frozenset(ignore),
            tuple(files), limit, timeout, outstanding,
        )
    )  # fmt: skip


def start(plan: Plan) -> None:
    """The same for a plan."""
    if is_local():
        raise ValueError("GRAFT_MODE is local: there is no cluster to compare with; unset it")
    if in_worker():
        raise RuntimeError("this process is a worker; shadow and canary are for programs that call the facades")
    if installed() is not None:
        raise RuntimeError("shadow is installed already; uninstall() first")
    from dataclasses import replace

    from graft.compat.shadow.live import Live

    folders = tuple(os.path.realpath(folder) for folder in plan.files)
    for folder in folders:
        if not os.path.isdir(folder):
            raise ValueError(f"there is no folder {folder}; make it first")
    old_way.set_watcher(Live(replace(plan, files=folders)))


def installed() -> Live | None:
    """What is carried out in this process."""
    found = old_way.watcher()
    if found is None:
        return None
    from graft.compat.shadow.live import Live

    return found if isinstance(found, Live) else None


def verdict(wait: float = 0.0) -> Verdict:
    """The verdict on all calls so far, once up to *wait* seconds have passed for what is outstanding.

    Raises:
        RuntimeError: shadow is not installed.
    """
    live = installed()
    if live is None:
        raise RuntimeError("shadow is not installed; call graft.compat.shadow.install() first")
    if wait:
        live.sender.wait(wait)
    return live.verdict()


def uninstall() -> None:
    """Let the cluster answer again wherever rule R2 lets it."""
    live = installed()
    if live is not None:
        live.stop()
        old_way.set_watcher(None)
