from __future__ import annotations

from graft.scripts.reference import PATH, reference


def test_the_page_says_what_the_settings_are():
    assert PATH.read_text(encoding="utf-8") == reference(), "run: python -m graft.scripts.reference"
