"""Runs a project's tests on a private Redis, as stock Celery and hardened."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from graft.scripts.ecosystem import outcomes
from graft.scripts.ecosystem.projects import Project
from graft.scripts.stack.local_stack import LocalStack, own_environ
from graft.scripts.stack.redis_server import last_lines

PLUGIN: Final = "graft.scripts.ecosystem.plugin"


class RunError(Exception):
    """The tests of a project did not come to an end, or there are none."""


@dataclass(frozen=True)
class Row:
    """What became of one project. ``unsteady`` are tests that passed once hardened only when they ran again."""

    project: Project
    compared: outcomes.Comparison
    unsteady: tuple[str, ...]
    apps: Mapping[str, int]
    seconds: Mapping[str, float]

    @property
    def lost(self) -> tuple[str, ...]:
        """The tests that pass in stock Celery and not hardened, but for those that are excused."""
        return tuple(test for test in self.compared.lost if test not in self.project.excused)


@dataclass(frozen=True)
class Place:
    """Where a project's tests run: its source, its Python, our library, and the folder for logs and reports."""

    source: Path
    python: Path
    library: Path
    home: Path


def open_redis(stack: LocalStack) -> None:
    """Let the tests in without the password: some know a host and a port alone. It listens on loopback only."""
    with redis.Redis.from_url(stack.redis_url) as client:
        client.config_set("requirepass", "")


def compare(stack: LocalStack, project: Project, place: Place) -> Row:
    """Run the tests of *project* both ways. What passes as stock alone is run once more, for it may be unsteady.

    Raises:
        RunError: pytest did not end in time, or ran no test.
    """
    seconds: dict[str, float] = {}
    stock, seconds["stock"] = run(stack, project, place, "stock")
    hardened, seconds["hardened"] = run(stack, project, place, "hardened")
    apps = json.loads((place.home / "apps.json").read_text())
    compared = outcomes.Comparison(stock, hardened)
    unsteady: tuple[str, ...] = ()
    if compared.lost:
        again, _ = run(stack, project, place, "hardened", "--last-failed")
        unsteady = tuple(test for test in compared.lost if again.get(test) == "passed")
        compared = outcomes.Comparison(stock, hardened | dict.fromkeys(unsteady, "passed"))
    return Row(project, compared, unsteady, apps, seconds)


def run(stack: LocalStack, project: Project, place: Place, way: str, *more: str) -> tuple[dict[str, str], float]:
    """The outcome of each test, and the seconds that all took."""
    with redis.Redis("127.0.0.1", port(stack)) as client:
        client.flushall()
    report, log = place.home / f"{way}.xml", place.home / f"{way}.log"
    report.unlink(missing_ok=True)
    argv = [str(place.python), "-m", "pytest", *project.arguments, f"--junit-xml={report}"]
    argv += ["-o", f"cache_dir={place.home / way}", *(("-p", PLUGIN) if way == "hardened" else ()), *more]
    log.unlink(missing_ok=True)
    began = time.monotonic()
    with chdir(place.source):
        child = stack.guard.start(argv, environ(stack, project, place), log=log)
    try:
        if not child.wait(project.limit):
            raise RunError(f"{project.requirement}, {way}: no end after {project.limit:g} s:\n{last_lines(log)}")
    finally:
        child.kill()
    found = outcomes.read(report) if report.exists() else {}
    if not found:
        raise RunError(f"{project.requirement}, {way}: pytest ran no test:\n{last_lines(log, 40)}")
    return found, time.monotonic() - began


def port(stack: LocalStack) -> int:
    return int(stack.redis_url.rpartition(":")[2].partition("/")[0])


def environ(stack: LocalStack, project: Project, place: Place) -> dict[str, str]:
    """Of this process, without any deployment of its own; the project's variables, and the private Redis."""
    url = f"redis://127.0.0.1:{port(stack)}/0"
    paths = [*(str(place.source / path) for path in project.path.split(":")), str(place.library)]
    found = {name: value for name, value in own_environ().items() if not name.startswith(("PYTEST", "PYTHON"))}
    found.pop("CI", None)  # Some projects ask more of a machine that says so.
    found |= {"CELERY_BROKER_URL": url, "PYTHONPATH": ":".join(paths), "PATH": f"{place.python.parent}:{found['PATH']}"}
    found["GRAFT_ECOSYSTEM_APPS"] = str(place.home / "apps.json")
    said = {"redis": url, "host": "127.0.0.1", "port": str(port(stack))}
    found |= {name: value.format(**said) for name, value in project.environ.items()}
    return {name: value for name, value in found.items() if value or name not in project.environ}
