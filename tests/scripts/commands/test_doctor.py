"""A fault in the settings is planted, and the doctor names it with a fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graft.config.celery_app import app
from graft.config.redis_checks import Finding
from graft.scripts.commands.doctor import facts
from graft.scripts.commands.doctor.rules import Grace, Reader, Setup, examine
from graft.tasks.health import beat_schedules
from graft.tasks.health.beat_schedules import BeatSchedule
from tests.stack import ROOT, Stack


@pytest.fixture
def well(redis_stack: Stack, tmp_path: Path) -> Setup:
    """The default settings, with a signing key and two workers that read all queues between them."""
    setup = facts.static(app, {}, tmp_path)
    readers = (Reader("cpu@here", setup.queues[:3]), Reader("io@here", setup.queues[3:]))
    # The tests redeliver after four seconds.
    return replace(setup, graft={**setup.graft, "visibility_timeout": 60.0}, readers=readers, flowers=())


def test_the_project_as_it_comes_has_nothing_wrong(well):
    assert examine(well) == []


def test_the_projects_own_files_have_nothing_wrong(well):
    ours = facts.static(app, {}, ROOT)
    assert ours.grace
    assert examine(replace(well, grace=ours.grace)) == []


def test_variables_that_nothing_reads_are_found_with_the_ones_that_were_meant(redis_stack, tmp_path):
    environ = {
        "GRAFT_RUN_LIMITS": "5", "GRAFT_SIGNIN_KEY": "x", "GRAFT_WHATEVER": "1", "CELERY_BROKER_ULR": "redis://",
        "GRAFT_RUN_LIMIT": "3", "GRAFT_EXPORTER_PORT": "1", "CELERY_TASK_ALWAYS_EAGER": "1", "HOME": "/",
    }  # fmt: skip
    assert facts.static(app, environ, tmp_path).misspelt == (
        ("CELERY_BROKER_ULR", "CELERY_BROKER_URL"), ("GRAFT_RUN_LIMITS", "GRAFT_RUN_LIMIT"),
        ("GRAFT_SIGNIN_KEY", "GRAFT_SIGNING_KEY"), ("GRAFT_WHATEVER", None),
    )  # fmt: skip


def test_beats_that_differ_are_named_with_the_entries_in_which_they_do(well):
    def found(*beats: BeatSchedule) -> str:
        return "".join(one.evidence for one in examine(replace(well, beats=beats)) if one.check == "beat")

    assert found(beat("a/1")) == ""
    assert "a/1, b/2 send; they differ in more" in found(beat("a/1"), beat("b/2", more="x every 5 s"))
    name = next(iter(app.conf.beat_schedule))
    assert f"they differ in {name}" in found(beat("a/1"), beat("b/2", **{name: "x every 5 s"}))
    dynamic = replace(beat("a/1"), scheduler="RedBeatScheduler")
    assert not examine(replace(well, beats=(dynamic,), sent={"other": ("x", 0.0)}))


def conf(**changed: Any) -> Any:
    return lambda setup: replace(setup, conf={**setup.conf, **changed})


def transport(**changed: Any) -> Any:
    def change(setup: Setup) -> Setup:
        options = {**setup.conf["broker_transport_options"], **changed}
        return replace(setup, conf={**setup.conf, "broker_transport_options": options})

    return change


def graft(**changed: Any) -> Any:
    return lambda setup: replace(setup, graft={**setup.graft, **changed})


def have(**changed: Any) -> Any:
    return lambda setup: replace(setup, **changed)


def project(**changed: Any) -> Any:
    return lambda setup: replace(graft(**changed)(setup), app={**setup.app, "is_ours": False})


def unsigned(*senders: str) -> Any:
    return lambda setup: replace(graft(signing="sign")(setup), unsigned=senders)


def acks_early(*tasks: str) -> Any:
    return lambda setup: replace(setup, app={**setup.app, "acks_early": tasks})


def beat(name: str, **more: str) -> BeatSchedule:
    """A live Beat with the entries of the app, and *more*."""
    entries = beat_schedules.entries_of(app.conf.beat_schedule)
    return BeatSchedule(name, "PersistentScheduler", 0.0, {**entries, **more})


NOWHERE = {"x": {"task": "graft.maintenance.prune_dead_letters", "schedule": 1.0, "options": {"queue": "nowhere"}}}


@pytest.mark.parametrize(
    ("fault", "severity", "check", "fix"),
    [
        (graft(signing_keys=()), "error", "signing key", "GRAFT_SIGNING_KEY"),
        (graft(mode="local"), "note", "mode", "GRAFT_MODE"),
        (have(files={"/srv/.env": 0o100644}), "error", "secret file", "chmod 600 /srv/.env"),
        (have(files={"/srv/.env": 0o100640}), "warning", "secret file", "chmod 600 /srv/.env"),
        (have(environ={"APP": "x"}), "warning", "environment", "unset APP"),
        (have(misspelt=(("GRAFT_RUN_LIMITS", "GRAFT_RUN_LIMIT"),)), "warning", "environment", "write GRAFT_RUN_LIMIT"),
        (have(misspelt=(("GRAFT_WHATEVER", None),)), "warning", "environment", "unset GRAFT_WHATEVER"),
        (conf(task_acks_late=False), "error", "late acks", "task_acks_late=True"),
        (conf(task_reject_on_worker_lost=False), "error", "late acks", "task_reject_on_worker_lost=True"),
        (conf(task_time_limit=None), "warning", "time limits", "GRAFT_HARD_TIME_LIMIT"),
        (conf(worker_consumer="celery.worker.consumer:Consumer"), "error", "worker consumer", "HardenedConsumer"),
        (project(signing_keys=()), "note", "signing key", "GRAFT_SIGNING_KEY"),
        (graft(signing="off"), "warning", "signing", "GRAFT_SIGNING=sign"),
        (graft(signing="sign"), "note", "signing", "GRAFT_SIGNING=require"),
        (unsigned("1@old", "2@old"), "note", "signing", "harden these senders"),
        (acks_early("a", "b", "c", "d", "e", "f"), "note", "late acks", "before the app is finalized"),
        (graft(visibility_timeout=3.0), "warning", "visibility timeout", "10 or more"),
        (conf(worker_eta_task_limit=None), "warning", "ETA", "1000"),
        (transport(global_keyprefix="shop:"), "error", "key prefix", "of your own"),
        (conf(task_default_priority=None), "error", "priorities", "task_default_priority=5"),
        (transport(priority_steps=[0, 3, 6, 9]), "warning", "priorities", "range(10)"),
        (transport(queue_order_strategy="round_robin"), "warning", "priorities", "queue_order_strategy=priority"),
        (conf(worker_prefetch_multiplier=4), "warning", "prefetch", "multiplier=1"),
        (transport(retry_on_timeout=True), "warning", "publishing", "remove retry_on_timeout"),
        (conf(accept_content=["json", "pickle"]), "error", "content", "accept_content"),
        (conf(beat_schedule={"x": {"task": "nobody.knows", "schedule": 1.0}}), "error", "schedule", "name"),
        (conf(beat_schedule=NOWHERE), "error", "schedule", "use one of"),
        (conf(task_routes={"process_item": {"queue": "nowhere"}}), "error", "routes", "use one of"),
        (conf(task_routes={"nobody.knows": {"queue": "low"}}), "warning", "routes", "remove the route"),
        (have(grace={"compose, worker": Grace(30.0)}), "warning", "stop grace", "GRAFT_DRAIN_TIMEOUT to 20"),
        (have(environ={"FLOWER_ADDRESS": "0.0.0.0"}), "error", "flower", "FLOWER_BASIC_AUTH"),
        (have(environ={"FLOWER_UNAUTHENTICATED_API": "true"}), "error", "flower", "unset"),
        (have(flowers=(("celery", "flower", "--address=0.0.0.0"),)), "error", "flower", "FLOWER_ADDRESS=127.0.0.1"),
        (have(readers=()), "warning", "workers", "celery -A graft worker"),
        (have(waiting={"io": 3}, readers=(Reader("cpu@here", ("batch",)),)), "error", "queues", "-Q io"),
        (have(beats=(beat("a/1"), beat("b/2"))), "error", "beat", "stop all but one"),
        (have(beats=(beat("a/1", gone="x every 1 s"),)), "warning", "beat", "restart Beat"),
        (have(beats=(beat("a/1"),), sent={"gone": ("x", 0.0)}), "note", "beat", "add it to beat_schedule"),
        (have(paused=frozenset({"low"})), "note", "queues", "resume"),
        (
            have(servers=(("broker", Finding("refuse", "eviction", "a: b", "do c")),)),
            "error",
            "broker eviction",
            "do c",
        ),
    ],
)
def test_each_fault_is_named_with_its_fix(well, fault, severity, check, fix):
    problems = examine(fault(well))
    matching = [each for each in problems if each.check == check and each.severity == severity]
    assert matching, problems
    assert any(fix in each.fix for each in matching), matching
    assert all(each.evidence for each in problems)


def test_a_worker_that_reads_what_nobody_writes_is_named(well):
    lost = Reader("lost@here", ("elsewhere",))
    (problem,) = examine(replace(well, readers=(*(well.readers or ()), lost)))
    assert (problem.severity, problem.check) == ("error", "workers")
    assert "lost@here reads elsewhere" in problem.evidence


def test_a_grace_shorter_than_the_drain_is_an_error(well):
    for grace in (Grace(20.0), Grace(20.0, drain=25.0)):
        (problem,) = examine(replace(well, graft={**well.graft, "drain_timeout": 30.0}, grace={"compose": grace}))
        assert problem.severity == "error"


def test_a_closed_flower_is_fine(well):
    for options in ((), ("--address=127.0.0.1",), ("--address=0.0.0.0", "--basic-auth=a:b")):
        flower = ("celery", "flower", *options)
        assert examine(replace(well, flowers=(flower,))) == []


def test_files_and_graces_are_read(tmp_path):
    (tmp_path / ".env").write_text("export GRAFT_SIGNING_KEY=0123456789abcdef\n")
    (tmp_path / "harmless.env").write_text("COLOUR=blue\n")
    (tmp_path / "docker-compose.yml").write_text(
        "services:\n  worker-cpu:\n    stop_grace_period: 1m30s\n  redis:\n    stop_grace_period: 5s\n"
    )
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")
    found = facts.secret_files({"GRAFT_SIGNING_KEY_FILE": str(key)}, tmp_path)
    assert set(found) == {str(tmp_path / ".env"), str(key)}
    assert facts.stop_graces(tmp_path) == {"docker-compose.yml, worker-cpu": Grace(90.0)}


def doctor(folder: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "celery", "-A", "graft", "doctor", *arguments]
    return subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_a_live_deployment_is_examined_and_its_faults_decide_the_exit_code(fresh_stack, tmp_path):
    stack = fresh_stack(cpu=1, GRAFT_VISIBILITY_TIMEOUT="60")
    fine = doctor(tmp_path, stack.env_of("viewer"))
    assert fine.returncode == 0, fine.stdout
    with stack.connect() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    (tmp_path / ".env").write_text("GRAFT_SIGNING_KEY=0123456789abcdef\n")
    os.chmod(tmp_path / ".env", 0o644)
    bad = doctor(tmp_path, {**stack.env_of("viewer"), "APP": "elsewhere"}, "--json")
    assert bad.returncode == 2
    problems = {problem["check"]: problem for problem in json.loads(bad.stdout)}
    assert {"broker eviction", "secret file", "environment"} <= set(problems)
    assert all(problem["fix"] for problem in problems.values())
    assert "CONFIG SET maxmemory-policy noeviction" in problems["broker eviction"]["fix"]


def test_a_broker_that_is_down_is_named_and_the_rest_is_examined_all_the_same(tmp_path, redis_stack):
    env = {**os.environ, "CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "CELERY_RESULT_BACKEND": "", "APP": "x"}
    done = doctor(tmp_path, env)
    assert done.returncode == 2
    assert "does not answer" in done.stdout
    assert "unset APP" in done.stdout
    assert doctor(tmp_path, env, "--offline").returncode == 1
