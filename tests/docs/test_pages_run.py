"""A reader who follows the pages at a terminal sees what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs import pages
from tests.scripts.sandbox import Sandbox
from tests.stack import ROOT, Stack


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    found = Sandbox(tmp_path)
    found.env.pop("GRAFT_VISIBILITY_TIMEOUT")  # The pages say what they set.
    return found


def check(printed: list[tuple[pages.Command, str]], page: Path) -> None:
    assert printed, f"{page.name} has no console block"
    assert len(printed) == len(pages.commands(page)), f"line {printed[-1][0].line} did not end: {printed[-1][1]}"
    different = [
        f"line {command.line}: $ {command.text}\n{text}"
        for command, text in printed
        if not pages.agree(command.expected, text)
    ]
    assert not different, "\n".join(different)


@pytest.mark.worker
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["README.md", "docs/get-started.md", "docs/tutorial.md", "docs/shadow.md"])
def test_a_page_that_starts_its_own_stack_prints_what_it_says(sandbox: Sandbox, name: str) -> None:
    page = ROOT / name
    try:
        check(pages.run(page, sandbox.work, sandbox.env, 360), page)
    finally:
        sandbox.dev("down")
        sandbox.kill()


@pytest.mark.acl_role("admin")  # The page starts workers, sends work and reads dead letters.
@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["your-own-project.md", "celery-users.md", "durable-batches.md"])
def test_a_page_for_a_deployment_prints_what_it_says(
    sandbox: Sandbox, fresh_stack: Callable[..., Stack], name: str
) -> None:
    page = ROOT / "docs" / name
    stack = fresh_stack(cpu=0)
    deployment = {name: stack.env[name] for name in stack.variables}
    try:
        check(pages.run(page, sandbox.work, {**sandbox.env, **deployment}, 180), page)
    finally:
        sandbox.kill()


def test_what_stands_for_anything_stands_for_nothing_else():
    assert pages.agree("a … c\n…\nlast\n", "a  b  c\n1\n2\nlast\n")
    assert pages.agree("…\n", "")
    assert not pages.agree("a … c\n", "a b\nc\n")
    assert not pages.agree("one\n", "one\ntwo\n")
