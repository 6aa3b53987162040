"""The screen of ``top``: from a snapshot and its rates to what rich draws in the given room. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app_name
from graft.scripts.snapshot import Rates, Snapshot, seconds_left
from graft.tasks.monitoring.worker_registry import IO_POOL
from graft.tasks.queues.peek import Waiting
from graft.tasks.sending.progress import BatchNote

STYLES: Final = {"ok": "green", "degraded": "yellow", "failing": "bold red", "": "dim"}
SHRINKS: Final = ("queue", "worker", "callable", "limit", "what")
KEYS: Final = "↑↓ queue  p pause  r resume  ⏎ peek  q quit"


def frame(
    now: Snapshot, speed: Rates, selected: str, peeked: Sequence[Waiting] | None = None, message: str = "",
    width: int = 80, height: int = 24,
) -> RenderableType:  # fmt: skip
    """The whole screen. Lines that do not fit are counted on the last one."""
    parts: list[RenderableType] = [head(now, speed, width), queues(now, speed, selected)]
    room = height - 2 - len(now.queues) - 1 - 1
    if peeked is not None:
        parts.append(peek(selected, peeked, room, width))
    else:
        for_limits = min(len(now.limits) + 1, max(0, room // 4)) if now.limits else 0
        room -= for_limits
        for_workers = min(len(now.workers) + 1, max(3, room // 2))
        parts.append(workers(now, speed, for_workers))
        if for_limits > 1:
            parts.append(limits(now, for_limits))
        parts.append(batches(now, speed, room - for_workers))
    parts.append(Text(message or KEYS, "bold yellow" if message else "dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def head(now: Snapshot, speed: Rates, width: int) -> RenderableType:
    items = sum(speed.items.values())
    state = now.health or "not checked"
    line = Text.assemble(
        (time.strftime("%H:%M:%S ", time.localtime(now.at)), "dim"), (state, STYLES.get(now.health, "dim")),
        f"  {items:,.0f} items/s  {speed.errors:,.1f} errors/s  {speed.retries:,.1f} retries/s  "
        f"{now.dead_letters:,} dead letters",
    )  # fmt: skip
    why = Text(", ".join(now.bad) if now.bad else " ", "yellow", no_wrap=True, overflow="ellipsis")
    line.no_wrap, line.overflow = True, "ellipsis"
    return Group(line, why)


def queues(now: Snapshot, speed: Rates, selected: str) -> Table:
    table = _table("queue", "waiting", "later", "oldest", "in/s", "out/s", "trend", "readers", "")
    for queue in now.queues:
        grows = speed.grows.get(queue.name, 0.0)
        trend = "▲" if grows > 0.05 else "▼" if grows < -0.05 else "·"
        later = f"{queue.later:,}" if queue.later else ""
        empty_in = queue.waiting / -grows if grows < -0.05 and queue.waiting else None
        table.add_row(
            queue.name, f"{queue.waiting:,}", later, _age(queue.oldest), _rate(speed.into.get(queue.name, 0.0)),
            _rate(speed.out.get(queue.name, 0.0)), f"{trend} {_age(empty_in)}",
            str(queue.readers), Text(queue.remark, "yellow" if queue.is_paused else "bold red"),
            style="reverse" if queue.name == selected else "",
        )  # fmt: skip
    return table


def workers(now: Snapshot, speed: Rates, room: int) -> RenderableType:
    if not now.workers:
        return Text(f"no worker is alive; start one: celery -A {app_name()} worker", "bold red")
    table = _table("worker", "pool", "busy", "held", "msg/s", "MiB", "lag")
    shown = now.workers if len(now.workers) < room else now.workers[: max(1, room - 2)]
    for worker in shown:
        is_full = worker.slots and worker.busy >= worker.slots
        table.add_row(
            worker.name, worker.pool.removesuffix("_pool"),
            Text(f"{worker.busy}/{worker.slots}", "yellow" if is_full else ""),
            str(worker.waiting), _rate(speed.workers.get(worker.name, 0.0)), f"{worker.memory / 2**20:,.0f}",
            "" if worker.lag is None else f"{worker.lag * 1000:.0f} ms",
        )  # fmt: skip
    if len(shown) < len(now.workers):
        rest = now.workers[len(shown) :]
        table.add_row(
            f"… {len(rest)} more", "", f"{sum(w.busy for w in rest)}/{sum(w.slots for w in rest)}", style="dim"
        )
    return table


def limits(now: Snapshot, room: int) -> RenderableType:
    """The limits that were used last; those whose breaker is open, and those that items wait for, come first."""
    table = _table("limit", "allows", "out", "in line", "begun", "sent back", "")
    ordered = sorted(now.limits, key=lambda one: (not one.open, -one.waiting, -one.last))
    shown = ordered if len(ordered) < room else ordered[: max(1, room - 2)]
    for one in shown:
        table.add_row(
            one.name, Text(one.rule, overflow="ellipsis"), str(one.held), f"{one.waiting:,}", f"{one.admitted:,}",
            f"{sum(one.postponed.values()):,}", Text(one.remark, "bold red"),
        )  # fmt: skip
    if len(shown) < len(ordered):
        table.add_row(f"… {len(ordered) - len(shown)} more", style="dim")
    return table


def batches(now: Snapshot, speed: Rates, room: int) -> RenderableType:
    """Batches with a bar and the time left. Without a batch: the callables that ran last."""
    if room < 2:
        return Text("")
    if not now.batches:
        return callables(now, speed, room)
    table = _table("batch", "callable", "", "done", "failed", "left")
    shown = now.batches if len(now.batches) < room else now.batches[: max(1, room - 2)]
    for note in shown:
        bar = ProgressBar(
            total=note.total or 1, completed=note.done if note.total else 0, width=10, pulse=not note.total
        )
        table.add_row(
            note.id[-6:], Text(note.function, overflow="ellipsis"), bar, share(note),
            Text(f"{note.failed:,}", "red" if note.failed else ""), _age(seconds_left(note)),
        )  # fmt: skip
    if len(shown) < len(now.batches):
        table.add_row("", f"… {len(now.batches) - len(shown)} more", style="dim")
    return table


def callables(now: Snapshot, speed: Rates, room: int) -> RenderableType:
    if not now.functions:
        return Text("nothing has run yet", "dim")
    table = _table("callable", "items/s", "items", "errors", "s/item", "last run")
    latest = sorted(now.functions.items(), key=lambda pair: -pair[1].last)
    for name, one in latest[: room - 1]:
        table.add_row(
            Text(name, overflow="ellipsis"), _rate(speed.items.get(name, 0.0)), f"{one.items:,}", f"{one.errors:,}",
            f"{one.seconds / one.items if one.items else 0:.2g}", _age(max(0.0, now.at - one.last)),
        )  # fmt: skip
    return table


def peek(queue: str, messages: Sequence[Waiting], room: int, width: int) -> RenderableType:
    if not messages:
        return Text(f"nothing waits in {queue}", "dim")
    table = _table(f"next in {queue}", "prio", "age", "items", "bytes", "what")
    for message in messages[: max(1, room - 1)]:
        age = None if message.sent_at is None else max(0.0, time.time() - message.sent_at)
        what = Text(message.function or message.what, no_wrap=True, overflow="ellipsis")
        if message.flaw:
            what.append(f"  workers refuse it: {message.flaw}", "red")
        items = f"{message.items:,}"
        table.add_row(message.id[-12:], str(message.priority), _age(age), items, f"{message.size:,}", what)
    return table


def share(note: BatchNote) -> str:
    return f"{note.done:,}/{note.total:,}" if note.total else f"{note.done:,}"


def line(now: Snapshot, speed: Rates) -> str:
    """One snapshot as one line, for logs and pipes."""
    io = [one for one in now.workers if one.pool == IO_POOL]
    cpu = [one for one in now.workers if one.pool != IO_POOL]
    busy = f"busy={sum(one.busy for one in cpu)}/{sum(one.slots for one in cpu)}"
    if io:  # Its slots are many and cheap: together the two would say that there is always room.
        busy += f" io={sum(one.busy for one in io)}/{sum(one.slots for one in io)}"
    waiting = " ".join(
        f"{queue.name}={queue.waiting}{f'+{queue.later} later' if queue.later else ''}"
        f"{'(paused)' if queue.is_paused else ''}"
        for queue in now.queues
        if queue.waiting or queue.later or queue.is_paused
    )
    busy_limits = [one for one in now.limits if one.open or one.waiting]
    parts = [
        time.strftime("%H:%M:%S", time.localtime(now.at)),
        f"health={(now.health or 'unknown')}",
        f"workers={len(now.workers)} {busy}",
        f"items/s={sum(speed.items.values()):.1f} errors/s={speed.errors:.1f} retries/s={speed.retries:.1f}",
        f"waiting: {waiting or 'nothing'}",
        f"dead-letters={now.dead_letters}",
        *(f"limit {one.name}: {one.remark or f'{one.waiting} in line'}" for one in busy_limits[:3]),
        *(f"batch {note.id[-6:]} {share(note)} left={_age(seconds_left(note)) or '?'}" for note in now.batches[:3]),
    ]
    return "  ".join(parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold dim", padding=(0, 1))
    for at, name in enumerate(columns):
        is_text = at == 0 or name in ("", "callable", "what", "pool", "trend", "allows")
        # One column takes what is left, the others what they need.
        ratio = 1 if name in SHRINKS else None
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis", ratio=ratio)
    return table


def _rate(value: float) -> str:
    return "" if value < 0.05 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for name, unit in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
