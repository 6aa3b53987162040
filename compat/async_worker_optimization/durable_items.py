"""Items that wait for their result, kept in Redis for a later process.

One hash by name: ``<owner>|<number>`` -> the sealed item. The number orders items over all processes of that name.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

from graft.compat.async_worker_optimization import redis_records
from graft.config import lua
from graft.config.deployment import settings
from graft.tasks import codec

PURPOSE: Final = "compat-batch-item"

SCRIPT: Final = lua.load(__file__, "durable_items")


class DurableItems:
    """The unanswered items of one processor. Every method blocks for a round trip."""

    def __init__(self, name: str) -> None:
        self.key = f"{redis_records.PREFIX}batch:{name}"
        self.keys = [self.key, f"{self.key}:number"]
        self.owner = uuid4().hex

    def put(self, item: Any) -> str:
        """Keep *item*; returns its field.

        Raises:
            UnpicklableError, PayloadTooLargeError: *item* cannot be kept.
            BrokerUnavailable: Redis does not answer.
        """
        sealed = codec.seal(PURPOSE, codec.dump_item(item, settings().item_limit, "an item kept until answered"))
        with redis_records.redis_or_error() as client:
            field: bytes = SCRIPT(self.keys, ["put", self.owner, sealed], client)
        return field.decode()

    def drop(self, fields: Sequence[str]) -> None:
        """Forget items that were answered."""
        with redis_records.redis_or_error() as client:
            client.hdel(self.key, *fields)

    def take_over(self) -> list[tuple[str, Any]]:
        """The items of all other owners, now this one's, in the order in which they were put."""
        with redis_records.redis_or_error() as client:
            taken = SCRIPT(self.keys, ["take_over", self.owner], client)
        fields = (field.decode() for field in taken[::2])
        items = (pickle.loads(codec.unseal(PURPOSE, sealed.decode())) for sealed in taken[1::2])
        return sorted(zip(fields, items, strict=True), key=lambda entry: entry[0])
