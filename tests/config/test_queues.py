from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.config.beat_schedule import beat_schedule
from graft.config.celeryconfig import options
from graft.config.queues import MIDDLE_PRIORITY, PRIORITY_STEPS, QUEUES, broker_priority, own_names
from graft.config.settings import Settings

numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False)


@given(number=numbers)
def test_every_old_priority_has_a_step(number):
    assert broker_priority(number) in PRIORITY_STEPS


@given(a=numbers, b=numbers)
def test_larger_goes_first(a, b):
    if a > b:
        assert broker_priority(a) <= broker_priority(b)


def test_no_priority_is_the_middle_one():
    assert broker_priority(0) == MIDDLE_PRIORITY


def test_a_priority_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="priority"):
        broker_priority(float("nan"))


def test_every_queue_has_a_lane_that_reads_it():
    assert {*own_names("cpu"), *own_names("io")} == {queue.name for queue in QUEUES}


def test_every_beat_entry_names_a_task_and_a_queue_that_exist():
    from graft.config.celery_app import app

    app.loader.import_default_modules()
    for entry in beat_schedule(Settings(poc_tasks=True), "maintenance").values():
        assert entry["task"] in app.tasks
        assert entry["options"]["queue"] in own_names()


def test_a_deployment_has_the_proof_of_concepts_routes_and_beat_entries_only_where_it_asks_for_them():
    assert not options(Settings(poc_tasks=False))["task_routes"]
    assert options(Settings(poc_tasks=True))["task_routes"]
    with_entries, few = (beat_schedule(Settings(poc_tasks=wanted), "maintenance") for wanted in (True, False))
    assert with_entries.keys() - few.keys() == {"cleanup-old-results", "collect-metrics"}
