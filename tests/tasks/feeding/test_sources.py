"""Durable batches whose items are read where they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import pytest

import graft
from graft.tasks.durable import record
from graft.tasks.ids import new_id
from tests import samples

WAIT = 60.0


@pytest.fixture
def name() -> Iterator[str]:
    yield f"source {new_id()}"
    for one in record.every():
        record.forget(one)


def written(path: Path, rows) -> graft.JsonLines:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return graft.JsonLines(path)


def test_a_range_takes_some_kilobytes_of_redis(stack, redis, name):
    batch = graft.submit(samples.identity, range(3, 150_000, 3), name=name)
    with pytest.raises(graft.BatchExistsError):
        graft.submit(samples.identity, range(4, 150_000, 3), name=name)
    assert batch._record.item_bytes < 2000
    batch.wait(WAIT)
    assert sum(1 for value, wanted in zip(batch, range(3, 150_000, 3), strict=True) if value == wanted) == 49_999
    assert graft.submit(samples.identity, list(range(3, 150_000, 3)), name=name).id == batch.id


def test_the_lines_of_a_file_are_items_and_failed_ones_are_read_again(stack, name, tmp_path):
    rows = [{"id": number, "price": 2, "text": "ü" * (number % 50)} for number in range(22_000)]
    lines = written(tmp_path / "rows.jsonl", rows)
    batch = graft.submit(samples.price_of, lines, name=name)
    batch.wait(WAIT)
    assert batch._record.item_bytes < 3000
    assert [one.index for one in batch.errors()] == [7]
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("2", "3", 1))
    assert batch.resume(failed=True) == 1
    batch.wait(WAIT)
    (outcome,) = batch.errors()
    assert "gives it no more" in str(outcome.error)  # The file is another one by now.


def test_of_a_changed_file_the_new_lines_run_alone(stack, name, tmp_path):
    rows = [{"id": number, "price": 2} for number in range(21_000)]
    how = {"name": name, "key": itemgetter("id")}
    graft.submit(samples.price_of, written(tmp_path / "rows.jsonl", rows), **how).wait(WAIT)
    rows[7]["price"] = rows[8]["price"] = 3
    again = graft.submit(samples.price_of, written(tmp_path / "rows.jsonl", [*rows[5:], {"id": -1, "price": 5}]), **how)
    assert again.collect(WAIT) == [10, 12, 21, 16, *(2 * number for number in range(9, 21_000)), -5]
    assert again.progress().envelopes <= 2


def test_the_pages_of_a_function_are_items(stack, name):
    batch = graft.submit(samples.identity, graft.Pages(samples.rows_after), name=name)
    assert batch.collect(WAIT) == [{"id": number} for number in range(1, 2501)]
    assert batch._record.item_bytes < 2000
    assert graft.submit(samples.identity, graft.Pages(samples.rows_after), name=name).id == batch.id
    assert graft.submit(samples.identity, graft.Pages(samples.rows_after)).collect(WAIT) == batch.collect(WAIT)


def test_a_page_that_cannot_be_read_for_a_moment_is_read_later(stack, name, tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = written(path, range(100))
    batch = graft.submit(samples.identity, lines, name=name, countdown=1)
    path.rename(tmp_path / "away")
    with pytest.raises(graft.ResultTimeout):
        batch.collect(4)
    assert batch.progress().failed == 0
    (tmp_path / "away").rename(path)
    assert batch.collect(WAIT) == list(range(100))


def test_inputs_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "bad.jsonl").write_text("1\n\n{oops}\n")

    def submit(items, **how):
        return graft.submit(samples.identity, items, durable=True, **how)

    with pytest.raises(ValueError, match=r"bad.jsonl, line 3 is not JSON"):
        submit(graft.JsonLines(tmp_path / "bad.jsonl"))
    with pytest.raises(OSError, match="No such file"):
        submit(graft.JsonLines(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="as the key behind"):
        submit(graft.Pages(samples.same_page_for_ever))
    with pytest.raises(graft.UnreferenceableError, match="cannot import"):
        submit(graft.Pages(lambda key: ([1], None)))
    with pytest.raises(ValueError, match="look at each item"):
        submit(graft.JsonLines(tmp_path / "bad.jsonl"), unpack=True)
