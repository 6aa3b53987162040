"""The call report as an HTML page: for each pool and old call its functions, where they ran, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Final

from graft.compat import html_page
from graft.compat.call_report import SECTIONS, CallReport, CallReportEntry, summary

FIGURES: Final = ("calls", "items", "seconds", "work", "at home", "failed")


def page(report: CallReport, program: str) -> str:
    """The page on *report*, of *program*; needs no other file."""
    rows = report.rows()
    heading = f"{program}: {summary(rows)}" if rows else f"{program}: no call went through the old interfaces"
    parts = [html_page.head(f"Call report: {program}"), f"<h1>{escape(heading)}</h1>"]
    pools = [row for row in rows if row.pool is not None and row.where == "cluster"]
    if pools:
        took, home = sum(row.seconds for row in pools), sum(row.home for row in pools)
        parts.append(
            f"<p>Its pools on workers had calls under way for {took:,.2f} s. At home these calls would have taken "
            f"about {home:,.2f} s, estimated from their own time there, which is called work below."
        )
    for (title, where, reason), group in groupby(rows, lambda row: (row.title, row.where, row.reason)):
        place, _ = SECTIONS[where]
        parts.append(f"<h2>{escape(title)}: <span class={where}>{place}</span></h2><p>{escape(reason)}")
        parts += _table(list(group))
    return "\n".join(parts) + "\n"


def _table(rows: Sequence[CallReportEntry]) -> Iterator[str]:
    has_pool = rows[0].pool is not None and rows[0].where == "cluster"
    yield "<table class=calls><tr><th>function" + "".join(
        f"<th class=figure>{name}" for name, _ in _figures(rows[0], has_pool=has_pool)
    )
    for row in rows:
        figures = "".join(f"<td class=figure>{text}" for _, text in _figures(row, has_pool=has_pool))
        yield f"<tr><td><code>{escape(row.func)}</code>{figures}"
    yield "</table>"
    advice = dict.fromkeys(row.advice for row in rows if row.advice)
    yield from (f"<p>To gain more: {escape(text)}" for text in advice)


def _figures(row: CallReportEntry, *, has_pool: bool) -> list[tuple[str, str]]:
    texts = (
        f"{row.calls:,}", f"{row.items:,}", f"{row.seconds:,.2f}", f"{row.busy:,.2f}", f"{row.home:,.2f}",
        f"{row.failures:,}",
    )  # fmt: skip
    return [pair for pair in zip(FIGURES, texts, strict=True) if has_pool or pair[0] not in FIGURES[3:5]]
