"""The table of the commands that ``celery -A graft`` has beside Celery's own: a name and one line of help for each.

Celery loads every entry for every command, a worker's start included. So an entry imports its module only when the
command runs. ``scripts/commands/__init__.py`` says how to add one.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import click

NOT_INSTALLED = (
    "celery -A graft {name} is not part of an installation: clone the celery-graft repository, run ./scripts/setup "
    "there, then .venv/bin/celery -A graft {name}"
)


HELP = {"-h", "--help"}  # Shown for any app, which is not even configured for it.
WITHOUT_AN_APP = ("bench", "drill")  # They make a stack of their own.


class LazyCommand(click.Command):
    """Stands for ``command`` of ``graft.scripts.commands.<name>``, which is imported when it runs or shows its help."""

    def __init__(self, name: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self.module = f"graft.scripts.commands.{name.replace('-', '_')}"

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        app = getattr(getattr(parent, "obj", None), "app", None)  # Of `celery -A`.
        if app is not None and self.name not in WITHOUT_AN_APP and not HELP & set(args):
            from graft.config import harden

            if not harden.is_active(app):
                click.echo(f"error: {harden.why_inactive(app)}", err=True)
                raise SystemExit(2)
        try:
            command: click.Command = import_module(self.module).command
        except ModuleNotFoundError as error:
            if error.name != self.module:
                raise
            # The wheel leaves out commands that are for this repository (pyproject.toml).
            click.echo(f"error: {NOT_INSTALLED.format(name=self.name)}", err=True)
            raise SystemExit(2) from None
        return command.make_context(info_name, args, parent, **extra)


batch = LazyCommand("batch", "List, watch, read, pause or cancel batches.")
bench = LazyCommand("bench", "Measure speed side by side with other task queues.")
dead_letters = LazyCommand("dead-letters", "List, show, replay, drop or export dead letters.")
doctor = LazyCommand("doctor", "Find harmful settings, each with its remedy.")
drill = LazyCommand("drill", "Break a private stack on purpose and count lost tasks.")
exporter = LazyCommand("exporter", "Serve Prometheus metrics of the whole deployment.")
health = LazyCommand("health", "Say whether the deployment is healthy.")
html_report = LazyCommand("html-report", "Write an HTML page of the last day.")
leaks = LazyCommand("leaks", "Show which processes and Redis keys grow.")
quarantine = LazyCommand("quarantine", "List, show, replay or drop messages that workers refused.")
queue = LazyCommand("queue", "List, peek into, pause, resume or purge queues.")
schedule = LazyCommand("schedule", "List Beat's entries with their last and next run.")
shadow = LazyCommand("shadow", "Set what running programs shadow, or give to the cluster as canary.")
top = LazyCommand("top", "Watch queues, workers and batches live.")
track = LazyCommand("track", "Say what has become of one call, task or batch.")
tune = LazyCommand("tune", "Recommend settings for one of your functions.")


def prepare_flower() -> None:
    """Point Flower at our configuration where there is no flowerconfig.py in the folder in which it is started."""
    if not Path("flowerconfig.py").exists():
        os.environ.setdefault("FLOWER_CONF", str(Path(__file__).resolve().parent.parent / "config" / "flowerconfig.py"))
