"""A library that lacks what we lean on is refused at start, with the versions that have it."""

from __future__ import annotations

import pytest
from celery.worker.consumer import Consumer

from graft.config.private_names import UnknownVersionError, of_billiard, of_celery, of_kombu, require

TABLES = (of_celery.APP, of_celery.WORKER, of_kombu.TRANSPORT, of_kombu.WORKER, of_billiard.WORKER)


def test_what_is_installed_here_has_all_of_them():
    require(*TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_really_asked_for(table):
    for place in table:
        with pytest.raises(UnknownVersionError, match=f"{place} has no _of_a_later_version: celery 5"):
            require({place: ("_of_a_later_version",)})


def test_a_missing_name_ends_the_start(monkeypatch):
    monkeypatch.delattr(Consumer, "create_task_handler")
    message = r"celery.worker.consumer:Consumer has no create_task_handler: .*pip install 'celery>=5.7"
    with pytest.raises(UnknownVersionError, match=message):
        require(of_celery.WORKER)
