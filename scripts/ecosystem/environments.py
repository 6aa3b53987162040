"""The source of a project, and a virtual environment with its needs beside the Celery, kombu and redis of our lock."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import graft
from graft.scripts.ecosystem.projects import Project

ROOT: Final = Path(graft.__file__).resolve().parent.parent
LOCK: Final = ROOT / "requirements.lock"
PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.MULTILINE)
PIP: Final = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "2")


class PreparationError(Exception):
    """A project could not be brought here."""


def constraints(lock: str) -> str:
    """The versions of *lock* for pip, but for pytest and its plugins, which a project chooses."""
    pins = [f"{name}=={version}" for name, version in PIN.findall(lock) if not name.startswith("pytest")]
    return "\n".join(pins) + "\n"


def prepare(project: Project, folder: Path) -> tuple[Path, Path]:
    """The project's source and the Python that can run its tests; both are made in *folder* unless they are there.

    Raises:
        PreparationError: the index does not answer, or has not got what the project needs.
    """
    home = folder / project.name
    source, python = home / f"source-{project.version}", home / "venv" / "bin" / "python"
    done = home / "done"
    wanted = repr((project.requirement, project.needs, project.keeps, project.edits)) + LOCK.read_text()
    if not done.exists() or done.read_text() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        _unpack(project, _download(project, home), source)
        _install(project, home, python)
        done.write_text(wanted)
    return source, python


def library(folder: Path) -> Path:
    """A folder with nothing in it but our package, so that no test of ours stands before one of theirs."""
    found = folder / "library"
    found.mkdir(parents=True, exist_ok=True)
    link = found / "graft"
    link.unlink(missing_ok=True)
    link.symlink_to(ROOT / "graft")
    return found


def _download(project: Project, home: Path) -> Path:
    _run([sys.executable, *PIP, "download", "--no-deps", "--no-binary", project.name, "-d", home, project.requirement])
    (archive,) = home.glob("*.tar.gz")
    return archive


def _unpack(project: Project, archive: Path, source: Path) -> None:
    with tarfile.open(archive) as opened:
        for member in opened.getmembers():
            _, _, member.name = member.name.partition("/")
            if member.name and (not project.keeps or member.name.split("/")[0] in project.keeps):
                opened.extract(member, source, filter="data")
    for name, (old, new) in project.edits.items():
        text = (source / name).read_text()
        if old not in text:
            raise PreparationError(f"{project.requirement}: {name} has no {old!r} to edit")
        (source / name).write_text(text.replace(old, new))


def _install(project: Project, home: Path, python: Path) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (home / "constraints.txt").write_text(constraints(LOCK.read_text()))
    _run([sys.executable, "-m", "venv", home / "venv"])
    _run([python, *PIP, "install", "-c", home / "constraints.txt", *ours, *project.needs])


def _run(command: Sequence[str | Path]) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        raise PreparationError(f"{' '.join(map(str, command))}:\n{done.stderr.strip()[-2000:]}")
