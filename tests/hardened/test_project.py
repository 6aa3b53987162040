"""A hardened project keeps its name, commands, queues and schedule, and ours work on it."""

from __future__ import annotations

import json
import signal

import pytest

from tests.stack import wait_until

WAIT = 60.0


def queues(shop):
    lines = shop.celery("queue", "list", "--json").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("where", ["first", "configured", "finalized", "last"])
def test_the_line_may_stand_anywhere_in_the_module_of_the_app(shop, where):
    shop.env["HARDEN_WHERE"] = where
    told = shop.run(
        "from graft.config import harden\n"
        "print(harden.is_active(app), type(app.connection_for_write().transport).__module__, app.main)\n"
        "print([task.acks_late for task in (write, at_once, kill_acked_early)])",
    )
    first, tasks = told.splitlines()
    assert first == "True graft.config.transport shop"
    # Celery gives a task its defaults when the app is finalized: what came before stays as it was.
    assert tasks == ("[True, False, False]" if where == "finalized" else "[True, True, False]")


def test_the_way_out_is_hardened_for_whoever_asks_first(shop):
    """With 40 threads in their first call one of them sent as stock Celery: what is sent was not configured yet."""
    told = shop.run("print(app.configured, [kind.__module__ for kind in type(app.amqp).__mro__][0])")
    assert told == "False graft.tasks.sending.amqp"


def test_its_tasks_are_its_own_and_shared_tasks_stay_with_it(shop):
    told = shop.run(
        "before = write.app\nbatch = graft.submit(len, ['ab'])\nprint(before is write.app is app)\n"
        "from celery import current_app\nprint(current_app._get_current_object() is app)\n"
        "print('graft.batch' in app.tasks, 'process_item' in app.tasks)",
        GRAFT_SIGNING_KEY="k" * 32,
    )
    assert told.splitlines() == ["True", "True", "True False"]


def test_submit_runs_on_the_projects_own_worker_and_default_queue(shop):
    key = {"GRAFT_SIGNING_KEY": "k" * 32}
    shop.worker(**key)
    told = shop.run(
        "print(graft.submit(str.upper, ['a', 'b']).collect(timeout=30))\n"
        "print(graft.submit(str.upper, ['c'], queue='celery').collect(timeout=30))",
        **key,
    )
    assert told.splitlines() == ["['A', 'B']", "['C']"]


@pytest.mark.parametrize("results", ["file://{folder}", "disabled://", "cache+memory://"])
def test_submit_works_where_results_go_elsewhere_or_nowhere(shop, tmp_path, results):
    environ = {"GRAFT_SIGNING_KEY": "k" * 32, "SHOP_RESULTS": results.format(folder=tmp_path)}
    shop.worker(**environ)
    told = shop.run(
        "print(graft.submit(str.upper, ['a']).collect(timeout=30))\n"
        "print(graft.submit(str.upper, ['a', 'b'], reduce=len).collect(timeout=30))",
        **environ,
    )
    assert told.splitlines() == ["['A']", "2"]


def test_a_clock_of_the_projects_own_stays(shop):
    code = (
        "from datetime import datetime, UTC\nfrom celery import Celery\n"
        "made = Celery('own', broker=app.conf.broker_url)\n"
        "graft.undo(app)\ngraft.harden(made)\nmade.now = lambda: datetime(2026, 3, 7, tzinfo=UTC)\n"
        "made.amqp.router\nprint(made.now().year, made.now().month)"
    )
    assert shop.run(code) == "2026 3"


def test_messages_of_task_protocol_1_run(shop):
    shop.worker()
    code = (
        "app.conf.task_protocol = 1\nprint(write.delay('old').get(timeout=30), write.apply_async(('new',), countdown=1)"
    )
    assert shop.run(f"{code}.get(timeout=30))") == "old new"
    assert shop.lines() == {"old": 1, "new": 1}


def test_every_command_of_ours_works_on_the_project(shop):
    shop.worker()
    shop.run("print(write.delay('x').get(timeout=30))")
    assert "workers=1 busy=0/2" in shop.celery("top", "--plain", "--count", "1")
    assert {line["name"]: line["readers"] for line in queues(shop)}["celery"] == 1
    assert "no worker is alive" not in shop.celery("health", code=None)
    told = shop.celery("doctor", code=None)
    assert "Traceback" not in told
    assert "celery -A graft" not in told
    assert "Nothing waits" in shop.celery("queue", "peek", "celery")
    assert "celery -A tests.projects.shop" in shop.celery("batch", "show", "0" * 32, code=1)
    for command in (("batch", "list"), ("dead-letters", "list"), ("leaks",), ("exporter", "--json")):
        assert "Traceback" not in shop.celery(*command, code=None)


def test_stock_apps_are_told_what_is_missing(shop):
    told = shop.celery("doctor", stock=True, code=2)
    assert "the app 'shop' is not hardened" in told
    assert "graft.harden(app)" in told


def test_the_same_without_an_edit(shop):
    process = shop.start("worker", name="never", stock=True)
    process.kill()
    told = shop.run(
        "import subprocess, sys, os\nenv = {k: v for k, v in os.environ.items() if k != 'HARDEN'}\n"
        "command = [sys.executable, '-m', 'graft', 'harden', '--', 'celery', '-A', 'tests.projects.shop']\n"
        "print(subprocess.run([*command, 'queue', 'list'], env=env, capture_output=True, text=True).stdout)\n"
        "print(subprocess.run([*command[:5], 'ls'], env=env, capture_output=True, text=True).stderr)"
    )
    assert "celery" in told
    assert "ls is not a Python command" in told


def test_a_queue_made_on_demand_and_one_named_with_q_are_seen_by_all(shop):
    shop.worker("-Q", "celery,by-name")
    shop.run("write.apply_async(['x'], queue='on demand: äöü')\nreport.delay()")
    listed = {line["name"]: (line["waiting"], line["readers"]) for line in queues(shop)}
    assert listed["by-name"] == (0, 1)
    assert listed["on demand: äöü"] == (1, 0)
    assert listed["reports"] == (1, 0)
    assert "1 message of 1" in shop.celery("queue", "peek", "on demand: äöü")
    assert "no worker reads reports" in shop.celery("doctor", code=None)


def test_direct_and_topic_exchanges_lead_where_the_app_says_also_after_a_crash(shop):
    shop.env["SHOP_EXCHANGES"] = "1"
    shop.worker()
    told = shop.run(
        "print(write.apply_async(['direct'], exchange='shop-direct', routing_key='direct-key').get(timeout=30))\n"
        "print(write.apply_async(['topic'], queue='topic-queue', routing_key='news.sport').get(timeout=30))\n"
        "died = kill.apply_async(queue='topic-queue', routing_key='news.deaths')\n"
        "print(type(died.get(timeout=60, propagate=False)).__name__)"
    )
    assert told.splitlines() == ["direct", "topic", "PoisonedError"]
    assert {"direct-queue", "topic-queue"} <= {line["name"] for line in queues(shop)}


def test_beat_sends_the_projects_entries_and_ours(shop):
    shop.worker(GRAFT_HEALTH_EVERY="2")
    beat = shop.start("beat", "-s", str(shop.folder / "schedule"), "--pidfile=", name="beat", GRAFT_HEALTH_EVERY="2")
    wait_until(lambda: shop.lines()["beat"] >= 2, WAIT, "the project's own entry")
    wait_until(lambda: shop.redis().exists("graft:health"), WAIT, "our check")
    listed = [json.loads(line) for line in shop.celery("schedule", "list", "--json").splitlines() if line[:1] == "{"]
    every = next(line for line in listed if line["name"] == "every-second")
    assert (every["schedule"], every["task"].rpartition(".")[2]) == ("every 1 s", "write")
    assert every["next"] == pytest.approx(every["last"] + 1)
    assert "graft.health.check" in shop.celery("schedule", "list")
    # The doctor's own process has another GRAFT_HEALTH_EVERY.
    assert "differs in graft.health.check, graft.history.note" in shop.celery("doctor", code=None)
    beat.send_signal(signal.SIGTERM)
    beat.wait(30)
    quiet = shop.run("app.loader.import_default_modules()\nprint(list(app.conf.beat_schedule))", GRAFT_BEAT="false")
    assert quiet == "['every-second']"


def test_undo_gives_back_stock_celery_and_waiting_messages_still_run(shop):
    shop.run("write.delay('sent by a hardened app')")
    told = shop.run("graft.undo(app)\nprint(type(app.connection().transport).__module__, app.conf.task_acks_late)")
    assert told == "kombu.transport.redis False"
    shop.worker(stock=True)
    wait_until(lambda: shop.lines()["sent by a hardened app"] == 1, WAIT)


REFUSALS = {
    "graft.harden('shop')": "takes a Celery app",
    "graft.harden(__import__('celery').Celery('other'))": "one app for each process",
    "graft.undo(__import__('celery').Celery('other'))": "is not hardened",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_what_cannot_be_hardened_is_named(shop, code):
    told = shop.run(f"try:\n    {code}\nexcept ValueError as error:\n    print(error)\nprint(graft.harden(app) is app)")
    assert REFUSALS[code] in told
    assert told.endswith("True")  # The same app twice is no error.


def test_after_the_first_submit_it_is_too_late(shop):
    told = shop.run(
        "graft.submit(len, ['ab'])\ntry:\n    graft.harden(app)\nexcept ValueError as error:\n    print(error)",
        stock=True, CELERY_BROKER_URL=shop.url, GRAFT_SIGNING_KEY="k" * 32,
    )  # fmt: skip
    assert "this process works with the app 'graft' already" in told


@pytest.mark.parametrize("broker", ["amqp://guest:secret@127.0.0.1:1//", "memory://", "sqs://"])
def test_without_redis_nothing_pretends(shop, broker):
    told = shop.run(
        f"app.conf.broker_url = {broker!r}\nfrom graft.config import harden\n"
        "print(harden.is_active(app), app.conf.task_acks_late, harden.why_inactive(app))",
        SHOP_REDIS=broker, SHOP_RESULTS=shop.url,
    )  # fmt: skip
    assert told.startswith("False False")
    assert "and Redis is needed" in told
    assert "secret" not in told


def test_a_periodic_task_with_overlap_skip_does_not_pile_up(shop):
    send = "for _ in range(3): slow.apply_async([8], overlap='skip')\nslow.apply_async([7], overlap='skip')"
    shop.run(send)
    assert shop.redis().llen("celery") == 2  # Other arguments are something else.
    worker = shop.worker()
    wait_until(lambda: shop.lines()["slow begins"] == 2, WAIT)
    shop.run("slow.apply_async([8], overlap='skip')")  # It runs.
    wait_until(lambda: shop.lines()["slow ends"] == 2, WAIT)
    shop.run("slow.apply_async([8], overlap='skip')")
    wait_until(lambda: shop.lines()["slow ends"] == 3, WAIT)
    assert shop.lines()["slow begins"] == 3
    shop.stop(worker)
    shop.run(send)
    shop.redis().delete("celery")  # Lost: they hold up nothing.
    shop.run(send)
    assert shop.redis().llen("celery") == 2


def test_periodic_tasks_with_overlap_queue_run_one_after_the_other(shop):
    shop.run("for _ in range(3): slow.apply_async([0.5], overlap='queue')")
    assert shop.redis().llen("celery") == 1
    worker = shop.worker()
    wait_until(lambda: shop.lines()["slow ends"] == 3, WAIT)
    lines = [line for line in shop.ledger.read_text().split() if line in ("begins", "ends")]
    assert lines == ["begins", "ends"] * 3
    shop.stop(worker)
    told = shop.run("try:\n    slow.apply_async([1], overlap='maybe')\nexcept ValueError as error:\n    print(error)")
    assert told == "overlap='maybe' must be one of allow, skip, queue"


def test_a_task_that_is_called_like_one_of_ours_is_named_at_the_start(shop):
    shop.worker(SHOP_TASK="graft.batch", PYTHONWARNINGS="default")
    told = (shop.folder / "worker.log").read_text()
    assert "Duplicate" in told  # Celery's own warning.
    assert "'graft.batch'" in told


def test_settings_that_cannot_work_end_the_process_and_are_named(shop):
    shop.env["GRAFT_RUN_LIMIT"] = "0"
    told = shop.celery("queue", "list", code=1)
    assert "graft.harden() cannot use these settings" in told
    assert "GRAFT_RUN_LIMIT=0" in told
