"""What has become of a call is said: state, each run, place, letters; and that it is not known."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from celery.app.task import Context
from click.testing import CliRunner, Result

import graft
from graft.config.celery_app import app
from graft.config.deployment import current
from graft.config.redis_client import shared
from graft.scripts.commands.track import command
from graft.tasks.policy import RetryPolicy
from graft.tasks.results import attempts, call_status
from graft.tasks.running import call_task
from tests import samples
from tests.stack import wait_until

pytestmark = pytest.mark.acl_role("operator")

WAIT = 60.0


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def record(call_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(call_id, "--json").stdout)
    return found


def send(func: Any, *args: Any, retries: int = 0, **options: Any) -> str:
    task_id = str(uuid4())
    how = {"owner": "test", "retry_limit": retries, "retry_wait": 0.1}
    call_task.call.apply_async([call_task.seal(func, args, {})], how, task_id=task_id, queue="default", **options)
    return task_id


def test_each_run_of_an_item_is_told_with_its_worker_and_error(stack, tmp_path):
    batch = graft.submit(samples.fail_until, [(str(tmp_path / "runs"), 2)], retry=RetryPolicy(runs=3, base=0.0))
    batch.collect(WAIT)
    wait_until(lambda: len(record(batch.id)["runs"]) == 2, WAIT, "the worker to tell of the run that succeeded")
    first, second = record(batch.id)["runs"]
    assert first["id"] == second["id"]
    assert first["error"].startswith("ConnectionError")
    assert (first["run"], second["run"], second["outcome"], second["error"]) == (1, 2, "1 item", "")
    assert "@" in second["worker"]
    assert second["queue"] == first["queue"] != ""
    found = record(first["id"])
    assert (found["state"], found["batch"]) == ("succeeded", batch.id)
    assert len(found["runs"]) == 2
    shown = run(first["id"]).stdout
    for part in (
        "succeeded",
        batch.id,
        "tests.samples:fail_until",
        "ConnectionError",
        second["worker"],
        second["queue"],
    ):
        assert part in shown
    assert first["id"] in run(batch.id).stdout


def test_a_failed_call_names_its_letter(stack):
    batch = graft.submit(samples.raise_value_error, [7])
    with pytest.raises(ValueError, match="no 7"):
        batch.collect(WAIT)
    (only,) = attempts.of(batch.id)
    assert (only.outcome, only.error.partition(":")[0]) == ("1 of 1 item failed", "ValueError")
    assert record(only.id)["letters"] == [f"{only.id}:0"]
    assert f"dead-letters show {only.id}:0" in run(only.id).stdout


def test_a_call_whose_time_has_not_come_is_scheduled_and_one_under_way_names_its_worker(stack):
    later = send(samples.square, 3, countdown=300)
    wait_until(lambda: record(later)["place"]["place"] == "later", WAIT, "it to be sent")
    assert call_status.status_of(later) == record(later)["state"] == "scheduled"
    assert "waits for its time, due in" in run(later).stdout
    now = send(samples.sleep, 4)
    wait_until(lambda: "runs it" in run(now).stdout, WAIT, "the worker to say so")
    wait_until(lambda: record(now)["runs"], WAIT, "its end")
    (ended,) = record(now)["runs"]
    assert (ended["outcome"], ended["name"], ended["queue"]) == ("succeeded", "graft.call", "default")
    app.control.revoke(later)


def test_nothing_is_made_up(redis):
    done = run("nobody-sent-this")
    assert done.exit_code == 1
    assert "nothing is known of nobody-sent-this" in done.stderr


@pytest.mark.acl_role("worker")
def test_the_latest_runs_are_kept_for_a_while(redis, monkeypatch):
    class Request:
        id, hostname, group = "kept-for-a-while", "here", None

    def add() -> None:
        attempts.add(shared(), Request, run=1, seconds=0.0, outcome="succeeded", name="a")

    add()
    assert [one.worker for one in attempts.of("kept-for-a-while")] == ["here"]
    moment = attempts.of("kept-for-a-while")[0].ended
    attempts.prune(shared(), moment + 86000)
    assert attempts.of("kept-for-a-while")
    attempts.prune(shared(), moment + 86401)
    assert not attempts.of("kept-for-a-while")
    monkeypatch.setenv("GRAFT_ATTEMPTS_BYTES", "0")
    current.reread_settings()
    try:
        add()
        assert not attempts.of("kept-for-a-while")
    finally:
        monkeypatch.undo()
        current.reread_settings()


@pytest.mark.acl_role("worker")
def test_the_runs_that_are_kept_take_so_many_bytes_of_redis(redis, monkeypatch):
    most = 200_000
    monkeypatch.setenv("GRAFT_ATTEMPTS_BYTES", str(most))
    current.reread_settings()

    def add(count: int, error: BaseException | None = None, name: str = "a") -> int:
        """Note so many runs; the bytes that the stream takes then."""
        for start in range(0, count, 500):
            with shared().pipeline(transaction=False) as pipe:
                for at in range(start, start + 500):
                    attempts.add(
                        pipe, Context(id=f"call-{at}", hostname="here", group=None), run=1, seconds=0.0,
                        outcome="failed" if error else "succeeded", name=name, error=error,
                    )  # fmt: skip
                pipe.execute()
        return int(redis.memory_usage(attempts.STREAM, samples=0))

    try:
        for taken in (add(3000), add(2000, ValueError("語" * 500), "shop.tasks:" + "a" * 80)):
            assert 0.7 * most < taken < 1.1 * most
        assert add(1000) < 2 * most  # The average still is that of the long ones, or nearly.
        with shared().pipeline(transaction=False) as pipe:
            for _ in range(2000):
                pipe.xadd(attempts.STREAM, {"id": "of a process that counts in another way" * 3})
            pipe.execute()
        assert attempts.prune(shared(), 0.0) > 0
        assert 0.7 * most < redis.memory_usage(attempts.STREAM, samples=0) < 1.1 * most
    finally:
        monkeypatch.undo()
        current.reread_settings()
        redis.delete(attempts.STREAM)
