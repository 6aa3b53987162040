"""Every command of ``celery -A graft`` has an entry point, a line in the table, a module and help."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from graft.scripts import command_table, commands
from graft.scripts.command_table import LazyCommand
from tests.stack import ROOT

ENTRY_POINTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
    "celery.commands"
]
SHARED = {"__init__", "options"}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_leads_to_a_command_with_help(name: str) -> None:
    module, _, attribute = ENTRY_POINTS[name].partition(":")
    entry = getattr(import_module(module), attribute)
    assert isinstance(entry, LazyCommand)
    assert entry.name == name
    assert entry.short_help
    shown = CliRunner().invoke(entry, ["--help"])
    assert shown.exit_code == 0, shown.output
    loaded = import_module(entry.module)
    assert isinstance(loaded.command, click.Command)
    assert loaded.command.help
    assert " ".join(loaded.command.help.split())[:40] in " ".join(shown.output.split())


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_the_help_of_every_command_and_sub_command_has_an_example(name: str) -> None:
    module, _, attribute = ENTRY_POINTS[name].partition(":")
    entry = getattr(import_module(module), attribute)
    command = import_module(entry.module).command
    for verb in [(), *((verb,) for verb in getattr(command, "commands", ()))]:
        shown = CliRunner().invoke(command, [*verb, "--help"], prog_name=name).output
        assert " ".join(("celery -A graft", name, *verb)) in shown


def test_every_module_of_the_folder_is_a_command() -> None:
    (folder,) = map(Path, commands.__path__)
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {name.replace("_", "-") for name in modules - SHARED} == ENTRY_POINTS.keys()


def test_the_table_names_no_other_command() -> None:
    entries = {entry.name for entry in vars(command_table).values() if isinstance(entry, LazyCommand)}
    assert entries == ENTRY_POINTS.keys()


def modules_after(*command: str) -> tuple[str, set[str]]:
    """What Celery's command line printed for *command*, and the modules that the process had imported by then."""
    code = (
        f"import sys; from celery.__main__ import main; sys.argv = {['celery', *command]}\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.split())


def test_celery_lists_every_command_and_imports_none() -> None:
    shown, modules = modules_after("-A", "graft", "--help")
    assert {line.split()[0] for line in shown.splitlines() if line.startswith("  ")} >= ENTRY_POINTS.keys()
    assert {name for name in modules if name.startswith("graft.scripts.")} == {"graft.scripts.command_table"}


@pytest.mark.parametrize("name", ["bench", "doctor", "health"])
def test_help_imports_nothing_that_only_the_command_needs(name: str) -> None:
    shown, modules = modules_after("-A", "graft", name, "--help")
    assert f"celery -A graft {name}" in shown
    needless = {"rich", "graft.config.transport.channel", "graft.tasks.guard", "graft.tasks.sending.amqp"}
    assert not modules & needless
    assert {room for room in modules if room.startswith("graft.scripts.bench")} == set()
