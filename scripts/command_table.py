"""What ``celery -A graft`` offers beside Celery's own commands.

Celery imports every plugin for every command, a worker's start included; these import their module when they are run.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import click


class LazyCommand(click.Command):
    """The ``command`` of *module*, which is imported when the command is run or asked for its help."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self.module = module

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        command: click.Command = import_module(self.module).command
        return command.make_context(*args, **kwargs)


bench = LazyCommand("bench", "graft.scripts.commands.bench", "Measure speed, side by side with others, in one run.")
tune = LazyCommand(
    "tune", "graft.scripts.commands.tune", "Recommend settings for a function of yours, by measuring it."
)
health = LazyCommand(
    "health", "graft.scripts.commands.health", "Say whether the deployment is healthy, and what is not."
)
leaks = LazyCommand("leaks", "graft.scripts.commands.leaks", "Say which process or family of keys grows, and why.")
doctor = LazyCommand("doctor", "graft.scripts.commands.doctor", "Find settings that will hurt, each with its remedy.")
top = LazyCommand("top", "graft.scripts.commands.top", "Watch queues, workers and batches live.")
dead_letters = LazyCommand(
    "dead-letters", "graft.scripts.commands.dead_letters", "List, show, replay, drop or export dead letters."
)
queue = LazyCommand("queue", "graft.scripts.commands.queue", "List, peek into, pause, resume or purge queues.")
batch = LazyCommand("batch", "graft.scripts.commands.batch", "List, show or cancel batches that run.")
html_report = LazyCommand(
    "html-report", "graft.scripts.commands.html_report", "Write an HTML page of the deployment's state and history."
)
exporter = LazyCommand(
    "exporter", "graft.scripts.commands.exporter", "Serve Prometheus metrics of queues and verdicts."
)
drill = LazyCommand(
    "drill", "graft.scripts.commands.drill", "Break a private stack on purpose and count what was lost."
)


def prepare_flower() -> None:
    """Point Flower at our configuration where there is no flowerconfig.py in the folder in which it is started."""
    if not Path("flowerconfig.py").exists():
        os.environ.setdefault("FLOWER_CONF", str(Path(__file__).resolve().parent.parent / "config" / "flowerconfig.py"))
