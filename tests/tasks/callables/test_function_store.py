"""What a process remembers of the callables that it has sent as copies."""

from __future__ import annotations

import pytest

from graft.tasks.callables import function_store
from graft.tasks.callables.references import refer


def test_a_process_that_sends_ever_new_callables_does_not_grow(redis, monkeypatch):
    monkeypatch.setattr(function_store, "MOST_STORED", 3)
    function_store.forget_stored()
    sent = [function_store.store(refer(lambda x, number=number: x + number)) for number in range(5)]
    assert [function_store.is_stored(each) for each in sent] == [False, False, True, True, True]
    assert function_store.load(sent[0])(1) == 1  # Redis has them all.
    with pytest.raises(TypeError):
        function_store.load(sent[4])()
