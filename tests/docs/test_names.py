"""What README and docs name exists: links, files, modules, tests, commands with their options, settings."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from celery.bin.celery import celery as celery_command

from graft.config.celery_app import app
from graft.config.own_task import task_modules
from graft.config.settings import Settings, variable
from graft.scripts import command_table
from tests.docs.pages import PAGES, blocks
from tests.stack import ROOT

ROOMS = ("tasks", "workers", "config", "compat", "scripts", "tests", "docs", "graft", ".ci")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(#[^)\s]+)?\)")
MODULE = re.compile(r"\bgraft(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(rf"(?<![\w./<-])(?:{'|'.join(map(re.escape, ROOMS))})(?:/[\w.{{}},-]+)*/?(?:::\w+)?")
TEST = re.compile(r"\b(test_\w+)(\.py)?(?:::(test_\w+))?")
COMMAND = re.compile(r"celery -A graft ([a-z][^\n`|&;>)]*)")
PROGRAM = re.compile(r"python -m (graft(?:\.\w+)+|tests(?:\.\w+)+)")
SETTING = re.compile(r"\bGRAFT_[A-Z_]+[A-Z]\b")
OUR_COMMANDS = {
    name.replace("_", "-"): found
    for name, found in vars(command_table).items()
    if isinstance(found, command_table.LazyCommand)
}

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def prose_and_code(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def spans(page: Path) -> Iterator[str]:
    """What the page sets as code, in line or in blocks."""
    text = prose_and_code(page)
    fenced = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    yield from (block for block in fenced.findall(text))
    yield from CODE.findall(fenced.sub("", text))


@page
def test_links_lead_somewhere(page: Path):
    for target, anchor in LINK.findall(prose_and_code(page)):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor[1:] in slugs, f"{page.name} links to {target}{anchor}, and there is no such heading"


@page
def test_files_exist(page: Path):
    for span in spans(page):
        for name in FILE.findall(span):
            path, _, test = name.partition("::")
            if "/" not in path or "{" in path:
                continue
            assert (ROOT / path).exists(), f"{page.name} names {path}, which does not exist"
            assert not test or test in names_of_tests()[Path(path).name], f"{page.name} names {name}: no such test"


@page
def test_modules_and_their_names_exist(page: Path):
    for span in spans(page):
        for name in MODULE.findall(span):
            known = name in registered() or resolves(name)
            assert known, f"{page.name} names {name}, which is neither a module, nor in one, nor a task"


@page
def test_python_blocks_use_what_exists(page: Path):
    for block in blocks(page):
        if block.language != "python":
            continue
        tree = compile(
            block.text, f"{page.name}:{block.line}", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "graft":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "graft":
                names = [f"graft.{node.attr}"]
            assert not [name for name in names if not resolves(name)], f"{page.name}, line {block.line}: {names}"


@page
def test_tests_exist(page: Path):
    every = {test for tests in names_of_tests().values() for test in tests}
    for span in spans(page):
        for name, is_file, test in TEST.findall(span):
            if is_file:
                assert f"{name}.py" in names_of_tests(), f"{page.name} names {name}.py, which does not exist"
                assert not test or test in names_of_tests()[f"{name}.py"], f"{page.name} names {test}: not in {name}.py"
            else:
                assert name in every or any(each.startswith(name) for each in every), (
                    f"{page.name} names {name}: no such test"
                )


@page
def test_commands_and_their_options_exist(page: Path):
    for span in spans(page):
        for line in COMMAND.findall(span.replace("\\\n", " ")):
            check_command(page, line.split())
        for name in PROGRAM.findall(span):
            assert find_spec(name), f"{page.name} names python -m {name}, which does not exist"


@page
def test_settings_exist(page: Path):
    known = {variable(name) for name in Settings.model_fields}
    for name in SETTING.findall(prose_and_code(page)):
        assert name in known or name in elsewhere(), f"{page.name} names {name}, which nothing reads"


def check_command(page: Path, words: list[str]) -> None:
    """Walk to the sub-command, then see that it has each option."""
    if "/" in words[0] or "|" in words[0]:
        return
    name = words.pop(0).rstrip(",.:")
    if name in OUR_COMMANDS:
        command: click.Command = importlib.import_module(OUR_COMMANDS[name].module).command
    else:
        assert name in {*celery_command.commands, "flower"}, (
            f"{page.name} names celery -A graft {name}: no such command"
        )
        if name == "flower":
            return
        command = celery_command.commands[name]
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z-]+,?", words[0]):
        verb = words.pop(0).rstrip(",")
        assert verb in command.commands, f"{page.name} names {name} {verb}: no such command"
        command = command.commands[verb]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if re.match(r"--\w", word):
            option = word.split("=")[0].rstrip(",.:;'")
            assert option in options, f"{page.name} names {name} {option}: no such option"


def resolves(name: str) -> bool:
    """Whether the longest part of *name* that is a module has the rest."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@cache
def registered() -> set[str]:
    """The names of the tasks that workers know."""
    for module in task_modules(app):
        importlib.import_module(module)
    return set(app.tasks)


@cache
def names_of_tests() -> dict[str, set[str]]:
    """The names of the tests, by file name."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        found.setdefault(path.name, set()).update(names)
    return found


@cache
def elsewhere() -> str:
    """The source in which variables that are no settings are read: Compose, the tests, the extras."""
    files = [*ROOT.glob("*.yml"), ROOT / ".env.example"]
    for room in ("tasks", "workers", "config", "compat", "scripts", "tests"):
        files += [path for path in (ROOT / room).rglob("*.py") if path.name != Path(__file__).name]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)
