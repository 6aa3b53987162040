"""What a process has one of: made once, made anew in a forked child, and no business of other apps in the process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from graft.config.deployment import Deployment
from tests.stack import ROOT, clean_environ


class Part:
    """Takes a while to make, as a connection does."""

    made = 0

    def __init__(self) -> None:
        time.sleep(0.02)
        type(self).made += 1


class Lasting:
    """Comes along into a forked child."""

    def __init__(self) -> None:
        self.forks = 0

    def after_fork(self) -> None:
        self.forks += 1


@pytest.fixture
def deployment(monkeypatch):
    monkeypatch.setattr(Part, "made", 0)
    return Deployment()


def test_a_part_is_made_once_under_many_threads(deployment):
    found = []
    barrier = threading.Barrier(16)

    def ask():
        barrier.wait(10)
        found.append(deployment.part(Part))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 16
    assert len(set(map(id, found))) == Part.made == 1


def test_a_part_may_need_another_while_it_is_made(deployment):
    def pair():
        return deployment.part(Part), deployment.part(Lasting)

    assert deployment.part(pair)[0] is deployment.part(Part)


def test_a_part_whose_making_fails_is_made_at_the_next_request(deployment):
    answers = [OSError("away"), "made"]

    def make():
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    with pytest.raises(OSError, match="away"):
        deployment.part(make)
    assert deployment.existing(make) is None
    assert deployment.part(make) == "made"


def test_a_part_that_was_dropped_is_made_anew(deployment):
    first = deployment.part(Part)
    assert deployment.existing(Part) is first
    deployment.drop(Part)
    assert deployment.existing(Part) is None
    assert deployment.part(Part) is not first


def test_the_environment_is_read_once_until_it_has_changed(deployment, monkeypatch):
    first = deployment.settings
    monkeypatch.setenv("GRAFT_RUN_LIMIT", str(first.run_limit + 1))
    assert deployment.settings is first
    deployment.reread_settings()
    assert deployment.settings.run_limit == first.run_limit + 1


def python(code: str) -> str:
    """The output of *code* in a process of its own, which has no Redis."""
    environ = {**clean_environ(os.environ), "PYTHONPATH": str(ROOT), "GRAFT_SIGNING_KEY": "k" * 32}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environ, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# One thread makes a part, and holds the lock for it, while another forks: the child must not wait for that thread.
FORKS = """
import os, threading, time
from graft.config.deployment import current, part, existing
from tests.config.test_deployment import Lasting, Part

lasting, ours, entered = part(Lasting), part(Part), threading.Event()
def slow():
    entered.set()
    time.sleep(2)
threading.Thread(target=part, args=(slow,), daemon=True).start()
entered.wait(10)
pid = os.fork()
if not pid:
    fine = existing(Part) is None and part(Part) is not ours and part(Lasting) is lasting and lasting.forks == 1
    os._exit(0 if fine else 1)
_, status = os.waitpid(pid, 0)
print(status, existing(Part) is ours, lasting.forks)
"""


def test_a_forked_child_makes_its_own_parts_but_those_that_come_along():
    assert python(FORKS) == "0 True 0\n"


QUIET = """
import importlib, pkgutil, sys
import graft.tasks
from celery import _state

for found in pkgutil.walk_packages(graft.tasks.__path__, "graft.tasks."):
    importlib.import_module(found.name)
print("graft.config.celery_app" in sys.modules, _state.default_app, list(_state._get_active_apps()))
"""


def test_importing_the_tasks_makes_no_app():
    assert python(QUIET) == "False None []\n"


SOMEBODYS = """
from celery import Celery, current_app, shared_task
theirs = Celery("theirs", broker="memory://")

@shared_task
def common(): pass

from graft.tasks.running.envelope_task import run_envelope
from graft.tasks.cleanup.periodic import prune_dead_letters
from graft.config.deployment import app, current
"""
OURS_HAS = "'graft.batch' in app().tasks, 'graft.maintenance.prune_dead_letters' in app().tasks"


def test_our_tasks_are_in_our_app_and_in_no_other_of_the_process():
    shown = python(
        f"{SOMEBODYS}\n"
        f"print({OURS_HAS}, [name for name in theirs.tasks if name.startswith('graft.')])\n"
        "print(run_envelope.app is app(), run_envelope.name, app() is not theirs)\n"
        "print(current_app._get_current_object() is theirs, common.app is theirs)\n"
    )
    assert shown == "True True []\nTrue graft.batch True\nTrue True\n"


@pytest.mark.parametrize("before", ["", "theirs.finalize()\n"])
def test_an_adopted_app_gets_our_tasks_also_after_it_was_finalized(before):
    shown = python(
        f"{SOMEBODYS}\n{before}other = Celery('other', set_as_current=False)\nother.finalize()\n"
        "current.adopt(current_app)\n"
        f"print({OURS_HAS}, app() is theirs, run_envelope.app is theirs)\n"
        "import graft.config.celery_app as own\n"
        "print(app() is theirs, [each for each in (own.app, other) if 'graft.batch' in each.tasks])\n"
    )
    assert shown == "True True True True\nTrue []\n"


def test_a_task_defined_after_its_app_was_finalized_is_registered():
    shown = python(
        "from graft.config.deployment import app\nfrom graft.config.own_task import own_task\napp().finalize()\n"
        "@own_task('graft.late')\ndef late(): return 'ran'\nprint(late(), 'graft.late' in app().tasks)\n"
    )
    assert shown == "ran True\n"
