"""The pages inside a real Flower: who sees them, who may act, what is noted, and what is shown while Redis is away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest

from tests.scripts.flower_pages.flower import Flower, another, links, user
from tests.stack import run_python, wait_until

pytestmark = pytest.mark.worker

PAGES = (
    "",
    "/queues",
    "/queue/low",
    "/batches",
    "/dead-letters",
    "/calls",
    "/health",
    "/workers",
    "/schedule",
    "/acts",
)
BATCH = """
import graft
from tests import samples
batch = graft.submit(samples.{function}, {items}, batch_size={size}, {options})
print(batch.id, flush=True)
{then}
"""


def send(
    flower: Flower,
    function: str,
    items: str,
    size: int = 1,
    then: str = "list(batch.as_completed())",
    options: str = "",
) -> str:
    """Send a batch from a process of its own; its id."""
    code = BATCH.format(function=function, items=items, size=size, then=then, options=options)
    done = run_python(flower.stack, code)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[0]


@contextmanager
def sending(
    flower: Flower, function: str, items: str, size: int = 1, options: str = ""
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that sends a batch and waits for it, and the batch's id; the process is killed at the end."""
    then = "list(batch.as_completed())"
    argv = [sys.executable, "-c", BATCH.format(function=function, items=items, size=size, then=then, options=options)]
    with subprocess.Popen(argv, env=flower.stack.env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_every_page_is_part_of_flower_and_says_the_same_as_json(acting):
    for path in PAGES:
        answer = acting.ask(f"/graft{path}")
        assert answer.status == 200, f"{path}: {answer.text[-3000:]}"
        assert 'class="app-brand navbar-brand"' in answer.text
        assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
        assert acting.data(path) is not None
        for closed in (f"/graft{path}", f"/api/graft{path}"):
            assert acting.ask(closed, login=False).status == 401, closed
    assert 'href="/graft/queues"' in acting.page("/workers")  # In Flower's own navigation.
    start = acting.ask("/")
    assert (start.status, start.headers["Location"]) == (302, "/graft")
    assert acting.ask("/graft/queue/nowhere").status == 404
    assert acting.ask("/api/graft/dead-letters?newer=soon").status == 400


def test_nothing_is_done_without_token_and_confirmation_and_what_is_done_is_noted(acting):
    page = acting.page("/graft/queues")
    assert '<form class="graft-act"' in page
    form = b"queue=heavy&confirmed=yes"
    assert acting.ask("/graft/do/pause", form).status == 403  # No token.
    assert acting.ask("/api/graft/do/pause", b"{}").status == 403  # Not as JSON: another site can send it.
    json = {"Content-Type": "application/json"}
    assert acting.ask("/api/graft/do/pause", b'{"queue": "heavy"}', login=False, headers=json).status == 401
    assert acting.submit("/graft/do/pause", queue="nowhere").status == 400
    asked = acting.submit("/graft/do/pause", queue="heavy", back="//evil.example/")
    assert (asked.status, "Pause the queue heavy?" in asked.text) == (200, True)
    assert not acting.data("/queue/heavy")["row"]["is_paused"]

    done = acting.submit("/graft/do/pause", queue="heavy", confirmed="yes", back="//evil.example/")
    assert done.status == 303
    assert done.headers["Location"].startswith("/graft?act=")
    assert "heavy is paused" in acting.page(done.headers["Location"])
    assert acting.do("resume", queue="heavy").text.count('"done": false') == 1
    assert '"done": true' in acting.do("resume", queue="heavy", confirmed=True).text
    acts = acting.data("/acts")
    assert [(act["who"], act["what"], act["result"]) for act in acts[:2]] == [
        ("ada", "Resume the queue heavy", "heavy is resumed"),
        ("ada", "Pause the queue heavy", "heavy is paused; no worker reads it"),
    ]
    assert acting.do("pause", queue="maintenance").status == 400


def test_a_read_only_flower_behind_a_prefix_refuses_and_shows_no_button(acting, tmp_path):
    with another(acting.stack, tmp_path, "/ops", FLOWER_URL_PREFIX="ops", FLOWER_READ_ONLY="true") as flower:
        for path in PAGES:
            html = flower.page(f"/graft{path}")
            assert 'class="graft-act"' not in html
            assert not [link for link in links(html) if link.startswith("/") and not link.startswith("/ops/")]
        assert flower.page("/graft/static/graft.js")
        refused = flower.do("pause", queue="low", confirmed=True)
        assert (refused.status, "read-only" in refused.text) == (403, True)
        assert flower.submit("/graft/do/pause", queue="low", confirmed="yes").status == 403
    assert not acting.data("/queue/low")["row"]["is_paused"]


def test_a_redis_user_who_may_only_read_sees_everything_and_does_nothing(acting, tmp_path):
    with another(acting.stack, tmp_path, **user(acting.stack, "viewer"), FLOWER_READ_ONLY="false") as flower:
        for path in PAGES:
            html = flower.page(f"/graft{path}")
            assert 'class="graft-act"' not in html
            assert "Not up to date" not in html, path
        assert "may only read" in flower.page("/graft/acts")
        refused = flower.do("pause", queue="low", confirmed=True)
        assert (refused.status, "may only read" in refused.text) == (403, True)


def test_a_redis_that_does_not_answer_leaves_what_was_last_known_and_since_when(acting):
    assert "Not up to date" not in acting.page("/graft/queues")
    redis = acting.stack.redis.pid
    os.kill(redis, signal.SIGSTOP)
    try:
        # Redis answers nobody yet, so these pages did not wait for it.
        time.sleep(1.0)  # For so long one reading serves everybody.
        html = acting.page("/graft/queues")
        assert "Not up to date" in html
        assert "maintenance" in html
        unknown = acting.ask("/api/graft/dead-letter/never-asked")
        assert (unknown.status, "has not answered" in unknown.text) == (503, True)
    finally:
        os.kill(redis, signal.SIGCONT)
    wait_until(lambda: "Not up to date" not in acting.page("/graft/queues"), 60, "news of Redis")


def test_a_queue_is_shown_by_callable_and_purged_to_the_dead_letters(acting):
    acting.do("pause", queue="low", confirmed=True)
    send(acting, "square", "range(12)", 4, "import time; time.sleep(0.5)", 'queue="low"')
    wait_until(lambda: sum(acting.data("/queue/low")["steps"]) == 3, 60, "the queue to be looked at")
    look = acting.data("/queue/low")
    finding = '<a href="/graft/queue/low">depth low</a>'
    wait_until(lambda: finding in acting.page("/graft"), 60, "a queue that holds work to be a finding")
    assert [(one["function"], one["messages"], one["items"]) for one in look["groups"]] == [
        ("tests.samples:square", 3, 12)
    ]
    for other in ("nobody:*", "*:square"):
        plan = acting.do("purge", queue="low", function=other).text
        assert ('"count": 3' in plan) == (other == "*:square")
    assert "3 messages" in acting.do("purge", queue="low", confirmed=True).text
    acting.do("resume", queue="low", confirmed=True)
    wait_until(lambda: acting.data("/queue/low")["row"]["waiting"] == 0, 60, "the queue to be looked at again")
    letters = acting.data("/dead-letters?queue=low")
    assert [(row["cause"]["reason"], row["cause"]["letters"]) for row in letters["causes"]] == [("revoked", 3)]
    assert acting.ask("/graft/dead-letters.jsonl?queue=low").text.count("\n") == 3
    assert '"count": 3' in acting.do("drop", queue="low").text  # A plan alone: nothing is dropped.

    assert acting.do("replay", queue="low", rate=0.001, confirmed=True).status == 200

    def job() -> dict[str, object]:
        found: dict[str, object] = acting.data("/dead-letters?queue=low")["jobs"][0]
        return found

    wait_until(lambda: job()["seen"] == 1, 30, "the first letter is sent; the next one waits for a quarter of an hour")
    assert acting.do("stop-job", job=job()["id"], confirmed=True).status == 200
    wait_until(lambda: job()["ended"], 30, "the job is stopped")
    assert job()["result"] == "1 of 3 done; stopped"
    left = [row["id"] for row in acting.data("/dead-letters?queue=low")["rows"]]
    acting.do("drop", ids=left[:1], confirmed=True)
    wait_until(lambda: acting.data("/dead-letters?queue=low")["paged"]["total"] == 1, 30, "a letter is dropped")
    assert (job()["result"], job()["title"]) == ("1 of 1 done", "Drop 1 dead letter")
    assert acting.data("/acts")[0]["result"] == "1 of 1 done"
    assert acting.do("drop").status == 400  # Nothing was chosen.


def test_a_durable_batch_is_paused_resumed_and_its_failures_run_again(acting):
    name = "pages-nightly"
    batch = send(acting, "raise_value_error_if_odd", "range(20)", 5, "batch.wait(60)", f'name="{name}"')
    look = acting.data(f"/batch/{name}")
    assert (look["row"]["state"], look["row"]["failed"], look["row"]["id"]) == ("failed", 10, batch)
    assert {run["batch"] for run in look["runs"]} == {batch}
    assert look["run_count"] == len(look["runs"])
    (cause,) = look["why"]["causes"]
    assert (cause["error"], cause["count"], cause["items"]) == ("ValueError: 1 is odd", 10, list(range(1, 20, 2)))
    assert "raise_value_error_if_odd" in cause["traceback"]
    assert "10 failed items" in acting.do("resume-batch", batch=batch, failed=True, confirmed=True).text
    wait_until(lambda: acting.data(f"/batch/{name}")["run_count"] > look["run_count"], 60, "they run again")
    wait_until(lambda: acting.data(f"/batch/{name}")["row"]["state"] == "failed", 60, "its end")
    assert name in acting.page("/graft/batches")
    assert "timeline" in acting.page(f"/graft/batch/{name}")
    assert acting.do("forget-batch", batch=batch, confirmed=True).status == 200
    wait_until(lambda: acting.ask(f"/graft/batch/{name}").status == 404, 30, "it is forgotten")


def test_a_call_is_found_by_its_error_or_queue_and_leads_to_its_letter_batch_and_flowers_page(acting):
    batch = send(acting, "raise_value_error_if_odd", "[41]")
    (run,) = acting.data(f"/calls?id={batch}")["rows"]
    assert run["name"] == "tests.samples:raise_value_error_if_odd"
    assert "41 is odd" in run["error"]
    found = acting.data("/calls?error=41+IS+odd&state=failed&function=*:raise_value*&newer=1h")["rows"]
    assert run["id"] in [one["id"] for one in found]
    assert not acting.data("/calls?error=41+is+odd&state=succeeded")["rows"]
    assert [one["id"] for one in acting.data(f"/calls?id={batch}&queue={run['queue']}")["rows"]] == [run["id"]]
    assert not acting.data(f"/calls?id={batch}&queue=nowhere")["rows"]
    call = acting.data(f"/call/{run['id']}")
    assert (call["batch"], len(call["letters"])) == (batch, 1)
    page, flowers = f"/graft/call/{run['id']}", f"/task/{run['id']}"
    wait_until(lambda: flowers in links(acting.page(page)), 30, "Flower to hear of the call")
    for link in (f"/graft/batch/{batch}", f"/graft/dead-letter/{quote(call['letters'][0], safe='')}"):
        assert link in links(acting.page(page)), link
    assert acting.ask("/graft/call/nobody-knows-me").status == 404


def test_calls_that_run_wait_or_are_not_due_are_found_by_state_callable_queue_and_batch(acting):
    acting.do("pause", queue="low", confirmed=True)
    with (
        sending(acting, "square", "range(12)", 4, 'queue="low"') as (_, waits),
        sending(acting, "square", "range(3)", 3, 'queue="heavy", countdown=3600') as (_, due),
        sending(acting, "sleep", "[30.0]") as (_, runs),
    ):
        for batch, state, count in ((waits, "queued", 3), (due, "scheduled", 1), (runs, "running", 1)):
            address = f"/calls?state={state}&id={batch}"
            wait_until(lambda at=address, n=count: len(acting.data(at)["under_way"]["found"]) == n, 60, address)
        ways = {}
        for batch in (waits, due, runs):
            ways[batch] = acting.data(f"/calls?id={batch}")["under_way"]
            assert ways[batch]["is_whole"]
        told = {
            batch: [(one["state"], one["function"], one["items"], one["queue"], one["batch"]) for one in way["found"]]
            for batch, way in ways.items()
        }
        assert told == {
            waits: 3 * [("queued", "tests.samples:square", 4, "low", waits)],
            due: [("scheduled", "tests.samples:square", 3, "heavy", due)],
            runs: [("running", "tests.samples:sleep", 1, "batch", runs)],
        }
        (scheduled,) = ways[due]["found"]
        assert scheduled["due"] - scheduled["sent"] == pytest.approx(3600, abs=60)
        for asked, found in (
            (f"state=queued&id={due}", 0), (f"state=running&id={runs}&function=*:sleep", 1),
            (f"id={runs}&queue=low", 0), (f"state=queued&queue=low&function=*:square&id={waits}", 3),
            (f"id={waits}&newer=1h", 3), (f"id={waits}&function=no*", 0),
        ):  # fmt: skip
            assert len(acting.data(f"/calls?{asked}")["under_way"]["found"]) == found, asked
        for asked in ("state=failed", "error=x", "worker=x"):  # That is said of runs that have ended.
            assert acting.data(f"/calls?{asked}")["under_way"] is None
        assert acting.ask("/api/graft/calls?state=sleeping").status == 400
        html = acting.page("/graft/calls")
        assert f"/graft/call/{ways[runs]['found'][0]['id']}" in links(html)
        acting.do("cancel-batch", batch=runs, running=True, confirmed=True)
    for batch in (waits, due):
        acting.do("cancel-batch", batch=batch, confirmed=True)
    acting.do("resume", queue="low", confirmed=True)
    wait_until(lambda: not acting.data(f"/calls?id={waits}")["under_way"]["found"], 30, "nothing of it waits")


def test_workers_say_what_they_run_and_an_entry_of_the_schedule_is_run_now(acting):
    send(acting, "sleep", "[12.0]", 1, "", 'name="pages-sleeper"')

    def running() -> list[str]:
        return [run["function"] for row in acting.data("/workers")["rows"] for run in row["running"]]

    wait_until(lambda: "tests.samples:sleep" in running(), 30, "it is seen to run")
    pids = {run["pid"] for row in acting.data("/workers")["rows"] for run in row["running"]}
    wait_until(lambda: pids & {row["last"]["pid"] for row in acting.data("/health")["processes"]}, 30, "its samples")
    key = next(row["key"] for row in acting.data("/health")["processes"] if row["last"]["pid"] in pids)
    assert acting.do("stack", process=key, confirmed=True).status == 200
    process = f"/graft/process/{quote(key)}"
    assert process in links(acting.page("/graft/health"))
    wait_until(lambda: process in links(acting.page("/graft/workers")), 30, "the process of what runs")
    wait_until(lambda: "samples.py" in acting.page(process), 30, "the stack of what it runs")
    growths = {one["measure"]: one for one in acting.data(f"/process/{quote(key)}")["growths"]}
    assert {"memory", "files", "threads"} <= growths.keys()
    assert growths["memory"]["points"][-1][1] > 1  # MiB.
    assert acting.ask("/graft/process/nobody").status == 404
    lines = {line["name"]: line for line in acting.data("/schedule")["lines"]}
    assert lines["graft.health.check"]["schedule"] == "every 30 s"
    assert acting.do("run-now", entry="nobody").status == acting.do("trace", process="nobody").status == 400
    assert "sent graft.health.check" in acting.do("run-now", entry="graft.health.check", confirmed=True).text

    def result() -> dict[str, object] | None:
        lines = {line["name"]: line for line in acting.data("/schedule")["lines"]}
        found: dict[str, object] | None = lines["graft.health.check"]["result"]
        return found

    wait_until(lambda: (result() or {}).get("outcome") == "succeeded", 30, "the result of the entry's run")
    assert ">succeeded</span>" in acting.page("/graft/schedule")
    wait_until(lambda: any(one["check"] == "workers" for one in acting.data("/health")["report"]["verdicts"]), 30)


def test_health_draws_the_last_hour_of_what_the_history_has(acting):
    assert acting.do("run-now", entry="graft.health.check", confirmed=True).status == 200
    wait_until(lambda: acting.data("/health")["report"]["by"], 30, "a report that is kept")
    for _ in range(2):
        assert acting.do("run-now", entry="graft.history.note", confirmed=True).status == 200

    def past(name: str) -> dict[str, list[float]]:
        health = acting.data("/health")
        found = zip(health["report"]["verdicts"], health["past"], strict=True)
        return next(values for one, values in found if f"{one['check']} {one['subject']}".strip() == name)

    for name in ("depth low", "age low", "workers", "errors"):
        wait_until(lambda name=name: len(past(name)["hour"]) >= 2 <= len(past(name)["day"]), 60, f"{name} twice")
    assert past("workers")["hour"][-1] == 1
    assert 'aria-label="workers, last hour: from 1 to 1, now 1, limit 1"' in acting.page("/graft/health")


def test_a_flower_that_lacks_something_starts_without_the_pages_and_says_so(acting, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import flower.urls\ndel flower.urls.settings['template_path']\n")
    with another(
        acting.stack, tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{acting.stack.env['PYTHONPATH']}"
    ) as flower:
        assert flower.ask("/graft").status != 200
        assert "starts without the pages of celery-graft" in (tmp_path / "flower.log").read_text()
