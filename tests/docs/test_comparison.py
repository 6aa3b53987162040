"""The comparison says nothing of us that is not there, and leaves no cell open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from graft.config.settings import Settings, variable
from tests.docs import test_names
from tests.stack import ROOT

PAGE: Final = ROOT / "docs" / "comparison.md"
PEERS: Final = ["Celery + Flower", "Dramatiq", "Taskiq", "Sidekiq", "BullMQ", "Oban", "Temporal", "Ray, Dask"]
COLUMNS: Final = ["feature", "here", "where", *PEERS]
ANSWER: Final = re.compile(r"(yes|partly|no|paid|plugin|n\. d\.)(?=$|[,:;])")


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row != COLUMNS and not set("".join(row)) <= {"-"}]


def exists(span: str) -> bool:
    """Whether a span of code in the column "where" names a command, a program, a setting, a file or a public name."""
    if found := test_names.COMMAND.fullmatch(span):
        try:
            test_names.check_command(PAGE, found[1].split())
        except AssertionError:
            return False
        return True
    if found := test_names.PROGRAM.fullmatch(span):
        return test_names.find_spec(found[1]) is not None
    if test_names.SETTING.fullmatch(span):
        return span in {variable(name) for name in Settings.model_fields}
    return (ROOT / span).exists() or (span.startswith("graft.") and test_names.resolves(span))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_answers_for_everybody_and_shows_where_ours_is(row: list[str]) -> None:
    assert len(row) == len(COLUMNS)
    for column, cell in zip(COLUMNS[1:2] + PEERS, row[1:2] + row[3:], strict=True):
        assert ANSWER.match(cell), f"{column}: {cell!r} begins with none of yes, partly, no, paid, plugin, n. d."
    here, where = row[1], row[2]
    if here.startswith("no"):
        assert not where, f"{here!r} has nothing to show"
        return
    spans = re.findall(r"`([^`]+)`", re.sub(r"\[[^\]]*\]\([^)]*\)", "", where))
    links = test_names.LINK.findall(where)  # Where they lead is checked for all pages.
    assert spans or links, f"{here!r} is not shown anywhere"
    assert [span for span in spans if not exists(span)] == []


def test_the_page_admits_what_others_do_better() -> None:
    better = [row[0] for row in rows() if not row[1].startswith("yes") and any(c.startswith("yes") for c in row[3:])]
    assert len(better) >= 8
    assert len({row[0] for row in rows()}) == len(rows()) >= 35


@pytest.mark.parametrize(
    "span",
    ["celery -A graft drills", "graft.compat.nothing", "GRAFT_NOTHING", "tasks/nothing.py", "python -m graft.no"],
)
def test_what_does_not_exist_is_noticed(span: str) -> None:
    assert not exists(span)


def test_the_page_is_where_a_reader_looks() -> None:
    assert "comparison.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "comparison.md" in Path(ROOT / "docs" / "README.md").read_text(encoding="utf-8")
