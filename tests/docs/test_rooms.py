"""Each room says at its door what it does, what it may import and who calls it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.stack import ROOT

ROOMS = ("tasks", "workers", "config", "compat", "scripts")
PACKAGES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("__init__.py"))


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_package_has_a_sentence(path: Path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{path.relative_to(ROOT)} says nothing: what does the room do, what may it import, who calls it?"
    assert docstring.split()[0] not in {"It", "What", "This", "Those", "Whoever"}


def test_the_picture_shows_every_room_of_tasks_and_the_glossary_is_short():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = text.partition("```\n")[2].partition("```")[0]
    rooms = [path.parent.name for path in (ROOT / "tasks").glob("*/__init__.py")]
    assert not [room for room in rooms if room not in picture.replace(",", " ").split()]
    assert text.partition("| noun |")[2].count("\n| ") <= 25
