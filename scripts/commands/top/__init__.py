"""``celery -A graft top``: queues, workers and batches, live. Without a terminal it prints lines."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
import redis
from rich.console import Console
from rich.live import Live

from graft.scripts import snapshot
from graft.scripts.commands.options import RedisCommand, examples
from graft.scripts.commands.top import view
from graft.scripts.snapshot import Rates, Snapshot
from graft.tasks.queues import pause as queue_pause
from graft.tasks.queues import peek as queue_peek
from graft.tasks.queues.peek import Waiting

KEY: Final = re.compile(r"\x1b[\[O][A-D]|.", re.DOTALL)  # Several may arrive at once.


@click.command(cls=RedisCommand, epilog=examples(
    "celery -A graft top",
    "celery -A graft top --plain --count 1    one line, for scripts",
))  # fmt: skip
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between updates.")
@click.option("--count", type=click.IntRange(1), help="End after this many updates.")
@click.option("--plain", is_flag=True, help="Print one line for each update, as without a terminal.")
def command(interval: float, count: int | None, plain: bool) -> None:
    """Watch queues, workers and batches live.

    Keys: up and down choose a queue, p pauses it, r resumes it, Enter shows its next messages, q quits. Without a
    terminal one line is printed for each update.
    """
    try:
        if plain or not (sys.stdin.isatty() and sys.stdout.isatty()):
            print_lines(interval, count)
        else:
            Screen(interval, count).run()
    except KeyboardInterrupt:
        pass


def print_lines(interval: float, count: int | None) -> None:
    before = snapshot.take()
    updates = 0
    while count is None or updates < count:
        time.sleep(interval)
        now = snapshot.take()
        click.echo(view.line(now, snapshot.rates(before, now)))
        before, updates = now, updates + 1


class Screen:
    """The live view, and the keys."""

    def __init__(self, interval: float, count: int | None = None) -> None:
        self.interval, self.count = interval, count
        self.console = Console()
        self.now: Snapshot = snapshot.take()
        self.speed = Rates()
        self.chosen = 0
        self.peeked: list[Waiting] | None = None
        self.message = ""
        self.is_over = False

    @property
    def queue(self) -> str:
        return self.now.queues[self.chosen].name

    def run(self) -> None:
        updates = 0
        with _keys() as keyboard, Live(console=self.console, screen=True, auto_refresh=False) as live:
            due = time.monotonic() + min(1.0, self.interval)
            while not self.is_over:
                width, height = self.console.size
                shown = view.frame(self.now, self.speed, self.queue, self.peeked, self.message, width, height)
                live.update(shown, refresh=True)
                if select.select([keyboard], [], [], max(0.0, due - time.monotonic()))[0]:
                    for key in KEY.findall(os.read(keyboard, 64).decode("utf-8", "replace")):
                        self.press(key)
                if time.monotonic() >= due:
                    self.update()
                    due = time.monotonic() + self.interval
                    updates += 1
                    self.is_over |= self.count is not None and updates >= self.count

    def update(self) -> None:
        """Read the deployment again. While Redis does not answer, the last line says so."""
        try:
            now = snapshot.take()
            self.speed = snapshot.rates(self.now, now)
            self.now = now
            if self.peeked is not None:
                self.peeked = self.peek()
            if self.message.startswith("Redis"):
                self.message = ""
        except (redis.RedisError, OSError) as error:
            self.message = f"Redis does not answer: {error}"

    def press(self, key: str) -> None:
        """Obey *key*."""
        self.message = ""
        try:
            match key:
                case "q" | "\x03" | "\x1b":
                    if self.peeked is not None and key == "\x1b":
                        self.peeked = None
                    else:
                        self.is_over = True
                case "k" | "\x1b[A" | "\x1bOA":
                    self.choose(-1)
                case "j" | "\x1b[B" | "\x1bOB":
                    self.choose(1)
                case "p":
                    queue_pause.pause(self.queue)
                    self.message = f"{self.queue} is paused: workers finish running tasks and take no more messages"
                    self.update()
                case "r":
                    queue_pause.resume(self.queue)
                    self.message = f"{self.queue} is resumed"
                    self.update()
                case "\r" | "\n" | " ":
                    self.peeked = None if self.peeked is not None else self.peek()
        except ValueError as error:
            self.message = str(error)
        except (redis.RedisError, OSError) as error:
            self.message = f"Redis does not answer: {error}"

    def peek(self) -> list[Waiting]:
        return queue_peek.peek(self.queue, 20)

    def choose(self, step: int) -> None:
        self.chosen = (self.chosen + step) % len(self.now.queues)
        if self.peeked is not None:
            self.peeked = self.peek()


@contextmanager
def _keys() -> Iterator[int]:
    """The keyboard without line buffering. Afterwards the terminal is as before."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
