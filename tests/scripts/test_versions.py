"""The versions that are supported: said once, and tried at both ends."""

from __future__ import annotations

import tomllib

from graft.config.private_names import SUPPORTED
from graft.scripts import versions
from tests.stack import ROOT


def test_the_ranges_that_an_error_names_are_those_that_pip_is_given():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {line.replace("[hiredis]", "") for line in project["dependencies"]}
    assert set(SUPPORTED) <= asked


def test_the_oldest_end_is_the_low_end_of_each_range():
    bounds = [line.split("==") for line in versions.lowest()]
    assert [name for name, _ in bounds] == ["celery", "kombu", "redis"]
    for (_, version), supported in zip(bounds, SUPPORTED, strict=True):
        assert f">={version.removesuffix('.*')}," in supported


def test_the_table_of_what_was_tried_names_the_supported_ranges():
    page = (ROOT / "docs" / "versions.md").read_text()
    assert [each for each in SUPPORTED if f"`{each}`" not in page] == []


def test_an_end_without_its_interpreter_is_left_out_in_one_line(monkeypatch, capfd):
    monkeypatch.setattr(versions, "PYTHONS", ("3.1",))
    assert versions.main(["--only", "oldest"]) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "versions: oldest is left out: no Python 3.1 with ensurepip on PATH or in pyenv"
