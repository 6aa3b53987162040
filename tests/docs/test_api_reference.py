"""docs/api.md says what the docstrings say, and shows every public name."""

from __future__ import annotations

import re
import subprocess
import sys

import graft
from graft.scripts.api_reference import PATH, page


def test_the_page_says_what_the_docstrings_say():
    assert PATH.read_text(encoding="utf-8") == page(), "run: python -m graft.scripts.api_reference"


def test_every_public_name_is_on_the_page():
    text = PATH.read_text(encoding="utf-8")
    shown = [name for name in graft.__all__ if f"`graft.{name}`" in text or f"| `{name}` |" in text]
    assert set(graft.__all__) - set(shown) == {"__version__"}


def test_every_public_name_exists_and_says_where_it_is_defined():
    for name in graft.__all__:
        assert name == "__version__" or getattr(graft, name).__module__.startswith(
            ("graft.tasks.", "graft.config.", "graft.compat.")
        )


def test_the_docs_import_public_names_only():
    imports = re.compile(
        r"^\s*(?:from graft\.(?:tasks|config|workers)|import graft\.(?:tasks|config|workers))", re.MULTILINE
    )
    pages = [*PATH.parent.glob("*.md"), *PATH.parent.rglob("examples/*.py"), PATH.parent.parent / "README.md"]
    assert [page.name for page in pages if imports.search(page.read_text(encoding="utf-8"))] == []


def test_the_package_and_its_errors_are_imported_without_celery():
    code = "import sys, graft; graft.TaskQueueError, graft.RetryPolicy; sys.exit('celery' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
