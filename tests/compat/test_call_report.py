"""The call report: sums, and a table that a person can read on a terminal and in a file."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import threading

import pytest

from graft.compat.call_report import CallReport, CallReportEntry, calls
from graft.compat.call_report_page import page
from graft.compat.pool_figures import PoolShape

WHY = (
    "a worker cannot import __main__:main.<locals>.collect, and it captures 'results' (list), which is the caller's "
    "own state; pass it as an argument, or define it at the top level of an installed module"
)


def call(**figures):
    given = {
        "call": "AsyncWorkerOptimizer.optimize_batch_processing",
        "func": "stdlib_index.stages:measure_source_file",
        "where": "cluster",
        "reason": "a worker can import it",
        "items": 1532,
        "seconds": 2.5,
        "envelopes": 12,
        "retries": 1,
        "failures": 0,
    }
    return CallReportEntry(**(given | figures))


@pytest.fixture
def report():
    report = CallReport()
    report.record(call(where="local", reason=WHY, items=10, envelopes=0, retries=0, failures=1))
    for _ in range(3):
        report.record(call())
    report.record(call(call="Pipeline.process", func="__main__:<lambda>", items=1_234_567, seconds=12345.678))
    return report


def text(report, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    report.render(file)
    file.flush()
    return raw.getvalue().decode(encoding)


def test_calls_that_differ_in_figures_only_are_summed(report):
    first, second, third = report.rows()
    assert (first.calls, first.items, first.seconds, first.envelopes, first.retries, first.failures) == (
        3, 3 * 1532, 7.5, 36, 3, 0,
    )  # fmt: skip
    assert (second.call, second.calls) == ("Pipeline.process", 1)
    assert (third.where, third.reason, third.failures) == ("local", WHY, 1)


def test_the_text_has_every_name_figure_and_reason_within_80_columns(report):
    lines = text(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Call report: 5 calls, 4 in the cluster and 1 on this machine"
    assert lines[2].split() == ["calls", "items", "seconds", "envelopes", "retries", "failed"]
    place = lines.index("  stdlib_index.stages:measure_source_file [1]")
    assert lines[place - 1] == "  AsyncWorkerOptimizer.optimize_batch_processing"
    assert lines[place + 1].split() == ["3", "4,596", "7.50", "36", "3", "0"]
    assert lines.index("in the cluster") < place < lines.index("on this machine")
    notes = " ".join(line.strip() for line in lines[lines.index("reasons") + 1 :])
    assert notes == f"[1] a worker can import it [2] {WHY}"


def test_figures_stand_in_columns_under_their_headings(report):
    lines = text(report).splitlines()
    ends = [lines[2].index(name) + len(name) for name in lines[2].split()]
    figures = [line for line in lines if re.fullmatch(r" {8,}[-\d., ]+", line)]
    assert len(figures) == 3
    for line in figures:
        assert [match.end() for match in re.finditer(r"\S+", line)] == ends


def test_a_report_without_calls_says_so():
    assert text(CallReport()) == "Call report: no call went through the old interfaces.\n"


def test_a_file_gets_plain_text_even_where_colours_are_forced(report, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert "\x1b" not in text(report)
    assert max(map(len, text(report).splitlines())) <= 80


def test_a_terminal_gets_colours(report, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal, open(ours, "rb") as seen:
        small = CallReport()
        small.record(call())
        small.render(terminal)
        terminal.flush()
        assert b"\x1b[1;32min the cluster" in os.read(seen.fileno(), 1 << 16)


def test_names_that_the_stream_cannot_encode_do_not_break_the_report():
    report = CallReport()
    report.record(call(func="módulo:naïve"))
    assert "m\\xf3dulo:na\\xefve" in text(report, "ascii")


def test_brackets_in_names_are_not_markup():
    report = CallReport()
    report.record(call(func="m:f[bold]", reason="[red]because[/red]"))
    assert "m:f[bold] [1]" in text(report)
    assert "[1] [red]because[/red]" in text(report)


def test_json_has_the_same_rows(report):
    rows = json.loads(report.as_json())["calls"]
    assert [row["call"] for row in rows] == [row.call for row in report.rows()]
    assert rows[0] == {
        "call": "AsyncWorkerOptimizer.optimize_batch_processing",
        "func": "stdlib_index.stages:measure_source_file",
        "where": "cluster",
        "reason": "a worker can import it",
        "calls": 3,
        "items": 4596,
        "seconds": 7.5,
        "envelopes": 36,
        "retries": 3,
        "failures": 0,
        "busy": 0.0,
        "home": 0.0,
        "pool": None,
    }


def test_the_page_has_every_pool_function_figure_and_reason_and_escapes_them():
    report = CallReport()
    made = PoolShape("shop/<prices>.py:21", 2, 8)
    for func, home in (("shop:price", 4.0), ("shop:<lambda>", 0.5)):
        report.record(call(call="ProcessPoolExecutor", func=func, pool=made, seconds=1.25, busy=2 * home, home=home,
                           items=40, reason="its processes are guests on workers"))  # fmt: skip
    report.record(call(call="multiprocessing.Pool", where="local", pool=PoolShape("shop.py:9", 2), reason="<it> stays"))
    text = page(report, "shop & co.py")
    assert "<h1>shop &amp; co.py: 3 calls, 2 in the cluster and 1 on this machine</h1>" in text
    assert "calls under way for 2.50 s. At home these calls would have taken about 4.50 s" in text
    assert "made at shop/&lt;prices&gt;.py:21: <span class=cluster>in the cluster" in text
    assert "<code>shop:&lt;lambda&gt;</code>" in text
    figures = re.findall(r"<td class=figure>([^<\n]*)", text)
    assert figures[:6] == ["1", "40", "1.25", "8.00", "4.00", "0"]
    assert "To gain more: the workers had 8 slots: give the pool more than 2 processes" in text
    assert "made at shop.py:9: <span class=local>on this machine</span></h2><p>&lt;it&gt; stays" in text
    assert len(figures) == 6 + 6 + 4  # A pool at home has no work on workers.


def test_the_text_says_what_a_pool_would_have_taken_at_home():
    report = CallReport()
    report.record(call(call="ProcessPoolExecutor", pool=PoolShape("shop.py:21", 4, 2), busy=8.0, home=2.25))
    lines = [line.strip() for line in text(report).splitlines()]
    at = lines.index("ProcessPoolExecutor of 4 processes, made at shop.py:21")
    assert lines[at + 3] == "8.00 s of work on workers; at home about 2.25 s"
    assert lines[at + 4] == "the workers had 2 slots for its 4 processes: start more of them"


def test_clear_forgets_everything(report):
    report.clear()
    assert report.rows() == []


def test_threads_may_record_at_once():
    report = CallReport()
    threads = [threading.Thread(target=lambda: [report.record(call()) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report.rows()[0].calls == 4000


def test_the_process_has_one_report():
    assert isinstance(calls(), CallReport)
