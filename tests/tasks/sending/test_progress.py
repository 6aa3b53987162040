"""Batches are seen by others while they run, whatever else this process has going on."""

from __future__ import annotations

import pytest

import graft
from graft.config.deployment import part
from graft.tasks.envelope import Outcome
from graft.tasks.results.outcomes import Outcomes, Progress
from graft.tasks.sending import progress
from graft.tasks.sending.batch_sender import BatchSender
from tests import samples
from tests.stack import wait_until

WAIT = 60.0


class Untold(Outcomes):
    """A batch that nobody answers, and that cannot say how far it is."""

    def progress(self) -> Progress:
        raise RuntimeError("a fault in the middle of it")


def test_a_batch_that_nobody_answers_and_that_fails_to_tell_how_far_it_is_hides_no_other(stack, caplog):
    batch = graft.submit(samples.pause, range(40), batch_size=1)
    (sender,) = [each for each in part(progress._Watched).senders if each.receiver.id == batch.id]
    broken = BatchSender(Untold(1), sender.source, sender.options, lambda sender: None)
    progress.watch(broken)
    try:
        wait_until(lambda: "cannot be published" in caplog.text, WAIT, "the fault to be logged")
    finally:
        broken.receiver.note_outcomes([Outcome(0, value=None)])
    later = graft.submit(samples.pause, range(40), batch_size=1)
    wait_until(lambda: later.id in [note.id for note in progress.running()], WAIT, "the later batch to be seen")
    for each in (batch, later):
        each.cancel()


@pytest.mark.acl_role("admin")
def test_the_thread_is_started_again_should_it_have_ended(stack):
    watched = part(progress._Watched)
    with watched.lock:
        watched.thread = None
    batch = graft.submit(samples.pause, range(40), batch_size=1)
    wait_until(lambda: batch.id in [note.id for note in progress.running()], WAIT, "the batch to be seen")
    batch.cancel()
