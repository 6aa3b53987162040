"""How a durable batch runs: its options, and what is called when it has ended. Kept sealed beside its record."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, Literal

from graft.tasks import codec
from graft.tasks.callables.references import FunctionRef
from graft.tasks.durable.record import BatchKeys
from graft.tasks.errors import EnvelopeError
from graft.tasks.policy import RetryPolicy
from graft.tasks.sending.batch_sender import BatchOptions

Event = Literal["success", "complete"]


@dataclass(frozen=True)
class Plan:
    """The options of a batch; ``then`` are callables of its summary, by the event that they follow."""

    options: BatchOptions
    then: tuple[tuple[Event, FunctionRef], ...] = ()

    def sealed(self, batch_id: str) -> bytes:
        options = self.options
        content = (
            _fields(options.function), options.queue, options.priority, options.batch_size, options.in_flight,
            options.concurrency, options.timeout, options.policy, options.unpack, options.share,
            [(event, _fields(ref)) for event, ref in self.then],
        )  # fmt: skip
        return codec.sealed(f"plan:{batch_id}", pickle.dumps(content, codec.PROTOCOL))

    @classmethod
    def read(cls, batch: BatchKeys, client: Any) -> Plan:
        """The plan of a batch.

        Raises:
            SignatureError: it was not sealed by this deployment.
            EnvelopeError: this process cannot open it, such as a policy with errors that it cannot import.
        """
        content = codec.unseal(f"plan:{batch.id}", client.get(batch.part("plan")) or b"")
        try:
            (
                function, queue, priority, batch_size, in_flight, concurrency, timeout, policy, unpack, share, then,
            ) = pickle.loads(content)  # fmt: skip
            assert isinstance(policy, RetryPolicy)
        except Exception as error:
            raise EnvelopeError(f"the workers cannot open the options of batch {batch.id}: {error!r}") from error
        options = BatchOptions(
            FunctionRef(*function), queue, priority, batch_size=batch_size, in_flight=in_flight,
            concurrency=concurrency, timeout=timeout, policy=policy, unpack=unpack, share=share,
        )  # fmt: skip
        return cls(options, tuple((event, FunctionRef(*fields)) for event, fields in then))


def _fields(ref: FunctionRef) -> tuple[str, str, bytes, bool]:
    return ref.how, ref.name, ref.payload, ref.is_async
