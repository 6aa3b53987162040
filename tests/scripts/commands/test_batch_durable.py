"""Durable batches from the command line: listed, shown, watched, read, paused, run again and forgotten."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

import graft
from graft.scripts.commands.batch import command
from graft.tasks.durable import record
from graft.tasks.ids import new_id
from tests import samples
from tests.stack import wait_until

pytestmark = pytest.mark.acl_role("operator")

WAIT = 60.0


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


@pytest.fixture
def name(stack, redis):
    yield f"features {new_id()[-6:]}"
    for one in record.every(redis):
        record.forget(one, redis)


def test_one_that_runs_is_listed_shown_paused_and_watched_to_its_end(name):
    batch = graft.submit(samples.pause, range(60), name=name, batch_size=1, in_flight=2)
    wait_until(lambda: batch.progress().done >= 2, WAIT, "a few items to be done")
    assert name in run("list").stdout
    listed = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    (mine,) = [one for one in listed if one["id"] == batch.id]
    assert (mine["name"], mine["total"], mine["state"], mine["durable"]) == (name, 60, "running", True)
    for known in (name, batch.id, batch.id[-8:]):
        shown = run("show", known).stdout
        for part in (batch.id, "tests.samples:pause", "of 60 done", "feeder"):
            assert part in shown
    assert run("pause", name).exit_code == 0
    assert json.loads(run("show", name, "--json").stdout)["state"] == "paused"
    assert "goes on" in run("resume", name).stderr
    watched = run("watch", name)
    assert watched.exit_code == 0, watched.output
    assert "60 of 60 done" in watched.stderr
    assert run("results", name).stdout.splitlines() == [f"{n}\t{n}" for n in range(60)]


def test_failed_items_are_printed_and_run_again(name, tmp_path):
    paths = [(str(tmp_path / "runs"), 6)]
    batch = graft.submit(samples.fail_until, paths * 5, name=name, batch_size=5)
    watched = run("watch", name)
    assert watched.exit_code == 1
    assert "batch resume --failed" in watched.stderr
    assert len(run("results", name, "--errors").stdout.splitlines()) == 5
    (first,) = run("results", name, "--errors", "--first", "1", "--json").stdout.splitlines()
    assert json.loads(first) == {"index": 0, "error": "ConnectionError('run 1 of 6')"}
    assert "5 failed items" in run("resume", name, "--failed").stderr
    assert run("watch", name).exit_code == 0
    assert [json.loads(line)["value"] for line in run("results", name, "--json").stdout.splitlines()] == [
        6,
        7,
        8,
        9,
        10,
    ]
    assert batch.state == "succeeded"


def test_results_that_are_there_are_printed_and_the_first_that_is_not_is_named(name):
    batch = graft.submit(samples.sleep, [0.0, 0.0, 20.0], name=name, batch_size=1)
    wait_until(lambda: batch.progress().done == 2, WAIT, "two items to be done")
    printed = run("results", name)
    assert printed.stdout.splitlines() == ["0\t0.0", "1\t0.0"]
    assert "item 2 has none yet" in printed.stderr
    assert "still runs" in run("resume", name, "--failed").stderr
    cancelled = run("cancel", name, "--yes", "--running")
    assert cancelled.exit_code == 0, cancelled.output
    batch.wait(WAIT)
    assert "CancelledBatchError" in run("results", name, "--errors").stdout


def test_a_batch_is_forgotten_after_a_yes(name):
    batch = graft.submit(samples.identity, range(5), name=name)
    batch.wait(WAIT)
    assert run("forget", name).exit_code == 2
    assert run("forget", name, "--yes").exit_code == 0
    for verb in ("watch", "results", "pause", "resume", "forget"):
        done = run(verb, name)
        assert done.exit_code == 1
        assert "no durable batch" in done.stderr
