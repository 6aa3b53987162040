"""The history: what a snapshot keeps of the checks, and that whoever knows it reads only what was added."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from graft.tasks.health import history
from graft.tasks.health.history import CHECKS, HISTORY, Snapshot
from graft.tasks.health.verdicts import HealthReport, Verdict


def test_a_snapshot_has_the_values_of_checks_those_in_trouble_first():
    verdicts = [
        Verdict("depth", "default", "failing", "", 5, 1), Verdict("leak", "x", "failing", ""),
        *(Verdict("worker", str(number), "ok", "", 1.0) for number in range(CHECKS)),
        Verdict("errors", "", "degraded", "", 0.123456, 0.05, "share"),
    ]  # fmt: skip
    kept = history.checked(HealthReport(1.0, tuple(verdicts)))
    assert len(kept) == CHECKS
    assert next(iter(kept.items())) == ("errors", 0.1235)
    then = Snapshot(1.0, {"default": [5, 2.5]}, checks=kept)
    assert [then.value_of("depth", "default"), then.value_of("age", "default"), then.value_of("age", "other")] == [
        5, 2.5, None,
    ]  # fmt: skip
    assert (then.value_of("errors", ""), then.value_of("worker", "0"), then.value_of("leak", "x")) == (0.1235, 1, None)
    assert history.checked(None) == {}


@pytest.mark.acl_role("worker")
def test_whoever_knows_the_history_reads_what_was_added(redis, monkeypatch):
    def add(*times: float) -> None:
        redis.rpush(HISTORY, *(json.dumps(asdict(Snapshot(at))) for at in times))

    read: list[int] = []
    monkeypatch.setattr(
        history, "read",
        lambda client, limit=history.LENGTH, read_them=history.read: (read.append(limit), read_them(client, limit))[1],
    )  # fmt: skip
    redis.delete(HISTORY)
    assert history.newer(redis, []) == []
    add(*range(20))
    known = history.newer(redis, [])
    add(20.0)
    known = history.newer(redis, known)
    assert [one.at for one in known] == list(range(21))
    assert read == [history.LENGTH, history.LENGTH, history.TAIL]
    add(*range(21, 41))  # More than are read to see what was added.
    assert [one.at for one in history.newer(redis, known)] == list(range(41))
    redis.delete(HISTORY)
    add(100.0)
    assert [one.at for one in history.newer(redis, known)] == [100.0]
    redis.delete(HISTORY)
