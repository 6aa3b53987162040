"""The pages that a reader follows at a terminal, as a shell runs them.

A ``console`` block is run: lines after ``$`` are commands, the others what they print. ``…`` stands for anything, on
a line of its own for any lines. A ``python`` block that begins with ``# FOLDER/NAME.py`` is that file.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.stack import ROOT

FENCE: Final = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PAGES: Final = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the number of its first line."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command of a console block, and what the page says that it prints."""

    text: str
    expected: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(found[2], found[3], text.count("\n", 0, found.start()) + 2) for found in FENCE.finditer(text)]


def commands(page: Path) -> list[Command]:
    """The commands of the page's console blocks, in order."""
    found: list[Command] = []
    for block in blocks(page):
        if block.language != "console":
            continue
        for number, line in enumerate(block.text.splitlines(), block.line):
            if line.startswith("$ "):
                found.append(Command(line[2:], "", number))
            else:
                found[-1] = Command(found[-1].text, f"{found[-1].expected}{line}\n", found[-1].line)
    return found


def write_files(page: Path, folder: Path) -> None:
    """Write the page's files where its reader would."""
    for block in blocks(page):
        if block.language == "python" and (name := re.match(r"# ([\w/]+\.py)\n", block.text)):
            (folder / name[1]).parent.mkdir(exist_ok=True)
            (folder / name[1]).write_text(block.text, encoding="utf-8")


def run(page: Path, folder: Path, env: Mapping[str, str], timeout: float) -> list[tuple[Command, str]]:
    """Run the page's commands in one shell: each with what it printed."""
    write_files(page, folder)
    todo = commands(page)
    mark = f"--{secrets.token_hex(8)}--"
    env = {**env, "PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "COLUMNS": "160"}
    script = "".join(f"{command.text}\necho {mark}\n" for command in todo)
    with (folder.parent / "printed").open("w+", encoding="utf-8") as output:
        # A file, since what a page starts in the background would keep a pipe open.
        with subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", script],
            cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        ) as shell:  # fmt: skip
            try:
                shell.wait(timeout)
            except subprocess.TimeoutExpired:
                shell.kill()
        output.seek(0)
        printed = output.read().split(f"{mark}\n")
    return [(command, text) for command, text in zip(todo, printed, strict=False)]


def agree(expected: str, printed: str) -> bool:
    """Whether *printed* is what the page says; columns may be wider or narrower."""
    pattern = re.escape("\n".join(_words(expected)))
    pattern = re.sub(r"(^|\\\n)…(?=\\\n|$)", r"(\1.*)?", pattern)
    return bool(re.fullmatch(pattern.replace("…", "[^\n]*"), "\n".join(_words(printed)), re.DOTALL))


def _words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]
