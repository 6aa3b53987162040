"""Options and behaviour that several commands share: durations, questions, and the error when Redis does not answer."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

import click
import redis
from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError

from graft.config.deployment import settings
from graft.config.redis_client import why_not
from graft.scripts.console import complain
from graft.tasks.queues import existing

UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
NOT_CONFIRMED: Final = 2
NO_REDIS: Final = 3


def examples(*lines: str) -> str:
    """An epilog for a command's help, with *lines* as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class RedisCommand(click.Command):
    """A command that has ``-h``, and ends with one line and exit code 3 when Redis does not answer, or refuses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": {"help_option_names": ["-h", "--help"]}, **kwargs})

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NoPermissionError as error:
            complain(f"the user that CELERY_BROKER_URL names may not do this: {error}; use one with more rights")
            raise SystemExit(NO_REDIS) from error
        except (redis.RedisError, OperationalError) as error:
            what, remedy = why_not(error)
            complain(f"{settings().broker_name} {what}: {error}; {remedy}")
            raise SystemExit(NO_REDIS) from error


class RedisCommandGroup(RedisCommand, click.Group):
    """The same with sub-commands, each of which shows those of the group's examples that are its own."""

    command_class = RedisCommand

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is not None and not found.epilog and self.epilog:
            own = [line.strip() for line in self.epilog.splitlines() if f" {ctx.info_name} {cmd_name}" in line]
            found.epilog = examples(*own) if own else None
        return found


class Age(click.ParamType):  # type: ignore[type-arg]  # Generic in newer releases of click alone.
    """A duration such as 90s, 15m, 2h or 7d, in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value)
        if found is None:
            self.fail(f"{value!r} is not a duration; write for instance 90s, 15m, 2h or 7d", param, ctx)
        return float(found[1]) * UNITS[found[2]]


class QueueName(click.ParamType):  # type: ignore[type-arg]  # Generic in newer releases of click alone.
    """The name of a queue that exists."""

    name = "queue"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return existing.checked(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def confirm(question: str, yes: bool) -> None:
    """Ask *question*, unless *yes* was given. Without a confirmation the program ends with exit code 2."""
    if yes:
        return
    if not sys.stdin.isatty():
        complain(f"{question} Nothing was done: there is no terminal for a confirmation; add --yes")
        raise SystemExit(NOT_CONFIRMED)
    if not click.confirm(question, err=True):
        raise SystemExit(NOT_CONFIRMED)
