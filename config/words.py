"""Counts as people write them."""

from __future__ import annotations

from typing import Final

SINGULAR: Final = {"are": "is", "were": "was", "have": "has"}


def several(count: int, noun: str, verb: str = "") -> str:
    """``1 message``, ``2,000 messages``, ``3 batches``; with the plural of a *verb* ``1 message waits``."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    if count == 1:
        verb = SINGULAR.get(verb, verb and f"{verb}s")
    return " ".join(filter(None, (f"{count:,}", noun if count == 1 else plural, verb)))
