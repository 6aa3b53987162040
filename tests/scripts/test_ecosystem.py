"""The comparison of a project's tests, stock and hardened; and the smallest project in full (pytest -m wheel)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graft.scripts.ecosystem import __main__ as ecosystem
from graft.scripts.ecosystem import environments, outcomes, report
from graft.scripts.ecosystem.outcomes import Comparison
from graft.scripts.ecosystem.projects import PROJECTS, Project
from graft.scripts.ecosystem.runs import Row
from tests.stack import ROOT, clean_environ

SMALLEST = "celery-longterm-scheduler"
REPORT = """\
<testsuites><testsuite>
  <testcase classname="t.a" name="good"/>
  <testcase classname="t.a" name="bad"><failure message="no"/></testcase>
  <testcase classname="t.a" name="broken"><error message="no"/></testcase>
  <testcase classname="t.a" name="left_out"><skipped message="no"/></testcase>
  <testcase classname="t.a" name="untidy"/>
  <testcase classname="t.a" name="untidy"><error message="teardown"/></testcase>
</testsuite></testsuites>
"""


def row(stock: dict[str, str], hardened: dict[str, str], **project: object) -> Row:
    made = Project("shop", "1.0", (), **project)  # type: ignore[arg-type]
    seconds = {"stock": 60.0, "hardened": 60.0}
    return Row(made, Comparison(stock, hardened), (), {"made": 2, "on_redis": 1}, seconds)


def test_a_report_is_read_test_by_test(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    assert outcomes.read(tmp_path / "report.xml") == {
        "t.a::good": "passed",
        "t.a::bad": "failed",
        "t.a::broken": "failed",
        "t.a::left_out": "skipped",
        "t.a::untidy": "failed",
    }


@pytest.mark.parametrize("hardened", [{"one": "failed"}, {"one": "skipped"}, {}])
def test_a_test_is_lost_that_passes_in_stock_celery_alone(hardened: dict[str, str]) -> None:
    compared = Comparison({"one": "passed", "two": "failed"}, {**hardened, "two": "failed"})
    assert compared.lost == ("one",)
    assert (compared.tests, compared.passed_stock, compared.passed_hardened) == (2, 1, 0)


def test_a_test_that_fails_both_ways_is_neither_lost_nor_gained() -> None:
    compared = Comparison({"one": "failed", "two": "failed"}, {"one": "failed", "two": "passed"})
    assert compared.lost == ()
    assert compared.gained == ("two",)


def test_an_excused_test_is_named_with_its_reason_and_not_counted() -> None:
    excused = row({"one": "passed"}, {"one": "failed"}, excused={"one": "it counts the keys in Redis"})
    assert excused.lost == ()
    assert "one is not counted: it counts the keys in Redis" in report.notes([excused])[0]


def test_every_lost_test_is_named_and_the_page_counts_it() -> None:
    lost = row({"one": "passed"}, {"one": "failed"})
    assert "one is lost" in report.notes([lost])[0]
    assert "| shop | 1.0 | 1 | 1 | 0 | 1 | 0 |" in report.as_page([lost])
    assert json.loads(report.as_json([lost]))[0]["lost"] == ["one"]


def test_what_was_written_earlier_is_shown_again(tmp_path: Path) -> None:
    made = Row(
        PROJECTS[0], Comparison({"one": "passed"}, {"one": "failed"}), (), {"made": 1, "on_redis": 1}, {"stock": 1}
    )
    earlier, page = tmp_path / "earlier.json", tmp_path / "page.md"
    earlier.write_text(report.as_json([made]))
    assert report.from_json(earlier.read_text()) == [made]
    assert ecosystem.main(["--from", str(earlier), "--markdown", str(page)]) == 1
    assert "one is lost" in page.read_text()


def test_a_lost_test_and_a_project_that_could_not_run_both_fail_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [row({"one": "passed"}, {"one": "passed"})], []
    monkeypatch.setattr(ecosystem, "measure", lambda *_: found)
    page = tmp_path / "page.md"
    assert ecosystem.main(["--markdown", str(page)]) == 0
    assert "| shop | 1.0 | 1 | 1 | 1 | 0 | 0 |" in page.read_text()
    found = [row({"one": "passed"}, {})], []
    assert ecosystem.main([]) == 1
    found = [], ["the index does not answer"]
    assert ecosystem.main([]) == 1


def test_the_lock_decides_every_version_but_those_of_pytest() -> None:
    pins = environments.constraints((ROOT / "requirements.lock").read_text()).splitlines()
    assert {"celery==5.7.0", "kombu==5.7.0", "redis==8.1.0"} <= set(pins)
    assert not [pin for pin in pins if pin.startswith("pytest")]
    assert environments.constraints("celery==5.7.0 \\\n    --hash=sha256:0\n# via kombu==1\n") == "celery==5.7.0\n"


def test_every_project_has_a_version_and_a_note_that_reads_on() -> None:
    assert len(PROJECTS) >= 7
    assert all(project.version and not project.note.endswith(".") for project in PROJECTS)


@pytest.mark.wheel
@pytest.mark.timeout(300)
def test_the_smallest_project_passes_as_well_hardened(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1")
    asked = subprocess.run(
        [*pip, "download", "--quiet", "--no-deps", "--dest", tmp_path, "billiard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode:
        reason = f"no package index answers: {asked.stderr.strip().splitlines()[-1]}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "graft.scripts.ecosystem", "--only", SMALLEST, "--json", out],
        env=clean_environ(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())
    assert found["lost"] == []
    assert set(found["hardened"].values()) == {"passed"}
    assert found["apps"]["on_redis"] > 0


def test_the_quick_run_is_a_part_of_celerys_own_tests() -> None:
    (quick,) = ecosystem._chosen(None, everything=False, quick=True)
    assert quick.name == "celery"
    assert set(quick.arguments[:2]) == {"t/integration/test_tasks.py", "t/integration/test_canvas.py"}
    assert len(ecosystem._chosen(["celery"], everything=True)[0].arguments) == 2
