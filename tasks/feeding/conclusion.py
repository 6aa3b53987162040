"""What follows the end of a durable batch: each callable of ``then`` is a durable batch of one item, the summary.

Its name follows from the batch and the event, so whoever feeds may submit it any number of times: there is one.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Final

from graft.tasks.durable.record import OPEN, BatchRecord
from graft.tasks.durable_batch import BatchSummary
from graft.tasks.errors import BrokerUnavailable, TaskQueueError
from graft.tasks.feeding.plan import Event, Plan
from graft.tasks.feeding.spool import spool
from graft.tasks.policy import as_policy
from graft.tasks.sending.batch_sender import BatchOptions

logger = logging.getLogger(__name__)

RETRIES: Final = 3  # Of an outage while it is called.


def name_of(record: BatchRecord, event: Event) -> str:
    """The name of the batch that follows *event* of *record*; another one each time that its failed items have run."""
    return f"{record.id}.{record.generation} {event}"


def conclude(record: BatchRecord, client: Any) -> None:
    """Have called what follows the end of a batch, and look after it no longer."""
    try:
        _submit_followers(record, client)
    except BrokerUnavailable:
        raise
    except TaskQueueError as error:
        logger.error("what follows the end of batch %s cannot be called: %s", record.name or record.id, error)
    client.zrem(OPEN, record.id)


def _submit_followers(record: BatchRecord, client: Any) -> None:
    plan = Plan.read(record.keys, client)
    for event, ref in plan.then:
        if event == "success" and record.state != "succeeded":
            continue
        options = BatchOptions(ref, plan.options.queue, plan.options.priority, policy=as_policy(RETRIES))
        summary = BatchSummary(
            record.id, record.name, record.state == "succeeded", record.total, record.failed, record.seconds
        )
        spool(Plan(options), None, partial(list, [summary]), name=name_of(record, event))
