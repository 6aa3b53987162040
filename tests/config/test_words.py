from __future__ import annotations

from graft.config.words import several


def test_counts_read_as_people_write_them():
    assert [several(count, "message", "wait") for count in (0, 1, 2000)] == [
        "0 messages wait", "1 message waits", "2,000 messages wait",
    ]  # fmt: skip
    assert several(1, "letter", "are") == "1 letter is"
    assert several(3, "batch") == "3 batches"
