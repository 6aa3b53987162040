"""Dead letters can be listed, replayed and removed, and none is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import graft
from graft.config.celery_app import app
from graft.scripts.commands.dead_letters import command
from graft.tasks.callables.function_store import store
from graft.tasks.callables.references import refer
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.query import Choice, causes
from graft.tasks.envelope import Envelope
from graft.tasks.ids import new_id
from graft.tasks.policy import RetryPolicy
from tests import samples
from tests.stack import run_python, wait_until

pytestmark = pytest.mark.acl_role("operator")

WAIT = 60.0


@pytest.fixture
def letters(redis: Any) -> Iterator[Any]:
    names = (dead_letters.LETTERS, dead_letters.INDEX, dead_letters.FAILED, dead_letters.FAILED_SIZE)
    redis.delete(*names)
    yield redis
    redis.delete(*names)


def buried(items: list[Any], error: str = "no", **changes: Any) -> dead_letters.DeadLetter:
    """A letter that holds a whole envelope of ``samples.square``, as a worker leaves it."""
    envelope = Envelope(
        new_id(), new_id(), store(refer(samples.square)), range(len(items)), items, packed=False, retries=4
    )
    made = dead_letters.DeadLetter.make(
        **{
            "id": envelope.id,
            "task": "graft.batch",
            "queue": "batch",
            "reason": "retries_exhausted",
            "function": "tests.samples:square",
            "error": ValueError(error),
            "traceback": "Traceback …\nValueError: no",
            "runs": 5,
            "items": len(items),
            "envelope": envelope.seal(),
            **changes,
        }
    )
    dead_letters.bury(made)
    return made


def run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(command, list(arguments), input=answer)


def test_letters_of_one_cause_are_one_line_and_the_most_frequent_comes_first(letters):
    for _ in range(3):
        buried([1, 2], error="often")
    rare = buried([1], error="once")
    listed = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert [(cause["letters"], cause["items"]) for cause in listed] == [(3, 6), (1, 1)]
    assert listed[1]["fingerprint"] == rare.fingerprint
    shown = run("list").stdout
    assert "ValueError: often" in shown
    assert rare.fingerprint in shown


def test_what_differs_from_item_to_item_is_no_cause_of_its_own(letters):
    for error in ("no key 'a' after 3.5 s", "no key 'b' after 12 s"):
        buried([1], error=error)
    buried([1], error="no lock 'a' after 3.5 s")
    assert [json.loads(line)["letters"] for line in run("list", "--json").stdout.splitlines()] == [2, 1]


def test_a_letter_is_shown_with_its_traceback_and_items(letters):
    one = buried([3, 4])
    shown = run("show", one.id).stdout
    for part in (one.id, "Traceback …", "[3, 4]", "batch", "retries_exhausted"):
        assert part in shown
    assert run("show", "nobody").exit_code == 1


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--function", "tests.*"], 2),
        (["--function", "other:*"], 0),
        (["--error", "PAPER"], 1),
        (["--newer-than", "1h"], 2),
        (["--older-than", "1h"], 0),
        (["--reason", "poisoned"], 1),
        (["--queue", "io", "--reason", "poisoned"], 0),
    ],
)
def test_filters_say_which_letters_are_meant(letters, filters, expected):
    buried([1], error="out of paper")
    buried([2], reason="poisoned")
    assert len(run("list", "--each", "--json", *filters).stdout.splitlines()) == expected


def test_nobody_means_everything_by_saying_nothing(letters):
    buried([1])
    for verb in ("replay", "drop"):
        done = run(verb, "--yes")
        assert done.exit_code == 2
        assert "or --all" in done.output
    assert dead_letters.count() == 1


def test_nothing_changes_without_a_yes_or_in_a_dry_run(letters):
    buried([1])
    for verb in ("replay", "drop"):
        assert run(verb, "--all").exit_code == 2
        assert run(verb, "--all", "--dry-run").exit_code == 0
    assert dead_letters.count() == 1


def test_dropped_letters_are_gone_and_the_others_stay(letters):
    buried([1], error="drop me")
    kept = buried([2])
    assert run("drop", "--error", "drop me", "--yes").exit_code == 0
    assert dead_letters.newest() == [kept]


def test_an_export_holds_whole_letters_for_its_owner_alone(letters, tmp_path):
    made = {letter.id: letter for letter in (buried([1]), buried([2]))}
    target = tmp_path / "letters.jsonl"
    assert run("export", "--out", str(target)).exit_code == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert {line["id"]: dead_letters.DeadLetter(**line) for line in lines} == made
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["letters.jsonl"]
    assert dead_letters.count() == 2


def test_what_was_given_up_succeeds_once_its_cause_is_mended(letters, stack, tmp_path):
    ledger = str(tmp_path / "runs")
    batch = graft.submit(samples.fail_until, [(ledger, 3)], retry=RetryPolicy(runs=2, base=0.0))
    with pytest.raises(ConnectionError):
        batch.collect(WAIT)
    (letter,) = dead_letters.newest()
    assert run("replay", letter.id, "--yes").exit_code == 0
    wait_until(lambda: len(Path(ledger).read_text().splitlines()) == 3, WAIT, "the third run, which succeeds")
    wait_until(lambda: app.AsyncResult(letter.id).state == "SUCCESS", WAIT, "the result under the old id")
    assert dead_letters.count() == 0


def listed(*options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("list", "--json", *options).stdout.splitlines()]


def test_items_that_fail_without_retries_leave_a_trace_that_alarms_nobody(letters, stack):
    outcomes = list(graft.submit(samples.raise_value_error_if_odd, range(60)).as_completed(WAIT))
    assert sum(outcome.error is not None for outcome in outcomes) == 30
    (cause,) = listed()
    assert (cause["reason"], cause["items"], cause["function"]) == (
        "failed", 30, "tests.samples:raise_value_error_if_odd",
    )  # fmt: skip
    assert dead_letters.count() == 0
    one = listed("--each")[0]
    shown = run("show", one["id"]).stdout
    assert "raise_value_error_if_odd" in shown
    assert "Traceback" in shown


def test_failed_letters_are_replayed_only_by_name_and_each_under_an_id_of_its_own(letters, stack):
    list(graft.submit(samples.raise_value_error_if_odd, [1, 3], batch_size=1).as_completed(WAIT))
    before = {letter["id"]: letter["buried_at"] for letter in listed("--each")}
    assert len(before) == 2
    assert "No dead letter matches" in run("replay", "--all", "--yes").stderr
    assert run("replay", "--reason", "failed", "--yes").exit_code == 0

    def have_failed_again() -> bool:
        after = {letter["id"]: letter["buried_at"] for letter in listed("--each")}
        return after.keys() == before.keys() and all(after[name] > before[name] for name in before)

    wait_until(have_failed_again, WAIT, "both to fail again, under the same letters")


def test_secrets_among_the_arguments_are_masked(letters):
    text = dead_letters.message_text([{"password": 'hun"ter2', "user": "ann"}], {"api_key": "k-123"})
    shown = run("show", buried([1], task="shop.pay", envelope=text).id).stdout
    assert "ann" in shown
    assert "hun" not in shown
    assert "k-123" not in shown
    shown = run("show", buried([{"db_password": "hunter2", "user": "bob"}]).id).stdout
    assert "bob" in shown
    assert "hunter2" not in shown


def test_a_replayed_letter_that_dies_again_is_buried_again_and_says_so(letters, stack):
    batch = graft.submit(samples.raise_value_error, [1], retry=RetryPolicy(runs=2, base=0.0))
    with pytest.raises(ValueError, match="no 1"):
        batch.collect(WAIT)
    (first,) = dead_letters.newest()
    assert run("replay", "--fingerprint", first.fingerprint[:6], "--yes").exit_code == 0
    wait_until(lambda: [each for each in dead_letters.newest() if each.buried_at > first.buried_at], WAIT, "the second")
    (line,) = run("list", "--each", "--json").stdout.splitlines()
    assert json.loads(line)["replayed"] == 1


def test_a_task_called_by_name_is_replayed_with_its_arguments(letters, stack, tmp_path):
    ledger = tmp_path / "calls"
    letter = buried(
        [1],
        id=new_id(),
        task="process_item",
        queue="default",
        function="process_item",
        envelope=dead_letters.message_text([{"id": 1, "value": str(ledger)}], {}),
    )
    assert run("replay", letter.id, "--yes").exit_code == 0
    wait_until(lambda: app.AsyncResult(letter.id).ready(), WAIT, "an end under the letter's id")


def test_what_cannot_be_opened_stays_and_is_named(letters):
    buried([1], envelope="not sealed by anybody")
    done = run("replay", "--all", "--yes")
    assert done.exit_code == 1
    assert "its envelope cannot be opened" in done.stderr
    assert dead_letters.count() == 1


def test_a_letter_that_is_replaced_meanwhile_is_not_removed(letters):
    old = buried([1])
    new = buried([1], id=old.id, runs=9)
    assert not dead_letters.remove(old)
    assert dead_letters.newest() == [new]


def test_a_letter_belongs_to_one_replay_at_a_time(letters):
    one = buried([1])
    assert dead_letters.lock(one.id)
    assert "Replayed 0 of 1" in run("replay", "--all", "--yes").stderr
    dead_letters.unlock(one.id)


def test_causes_are_counted_whole():
    assert causes([]) == []
    assert Choice().is_everything


BURY = """
from tests.scripts.commands.test_dead_letters import buried
for number in range(300):
    buried([number])
"""


def test_a_replay_that_is_killed_half_way_loses_no_letter(fresh_stack):
    stack = fresh_stack(cpu=0)
    made = run_python(stack, BURY)
    assert made.returncode == 0, made.stderr
    with stack.connect() as client:
        ids = {name.decode() for name in client.hkeys(dead_letters.LETTERS)}
        assert len(ids) == 300
        argv = [sys.executable, "-m", "celery", "-A", "graft", "dead-letters", "replay", "--all", "--yes"]
        replaying = subprocess.Popen([*argv, "--rate", "1000"], env=stack.env, stderr=subprocess.DEVNULL)
        wait_until(lambda: client.hlen(dead_letters.LETTERS) < 290, WAIT, "a few to be replayed")
        os.kill(replaying.pid, signal.SIGKILL)
        replaying.wait()
        left = {name.decode() for name in client.hkeys(dead_letters.LETTERS)}
        sent = [json.loads(raw)["headers"]["id"] for raw in client.lrange("batch\x06\x165", 0, -1)]
        assert left, "killed too late to prove anything"
        assert left | set(sent) == ids
        assert len(left) + len(sent) <= len(ids) + 1  # The one whose message was sent and whose letter was not removed.
        client.delete(*(dead_letters.LOCK + name for name in ids))  # As a minute's wait does.
        done = subprocess.run([*argv, "--rate", "10000"], env=stack.env, capture_output=True, check=False)
        assert done.returncode == 0
        sent = [json.loads(raw)["headers"]["id"] for raw in client.lrange("batch\x06\x165", 0, -1)]
        assert set(sent) == ids
        assert client.hlen(dead_letters.LETTERS) == 0


def test_a_replay_keeps_to_its_rate(letters):
    for number in range(6):
        buried([number], queue="heavy")
    began = time.monotonic()
    assert run("replay", "--all", "--yes", "--rate", "10").exit_code == 0
    assert time.monotonic() - began >= 0.45  # The lower bound is the promise: five waits of a tenth of a second.
