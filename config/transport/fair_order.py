"""Fair queueing: batches whose messages wait in one list share what is taken from it.

    batch A  0 ── 0.5 ── 1.0 ── 1.5        each message starts where the one before it in its batch ends;
    batch B              1.0 ─ 1.1 ─ 1.2   a newcomer starts where the workers are, not behind all that waits

Where an envelope ends is expected when it is sent, and known when it is answered. The list stays one list of plain
messages, the next at its right end: whoever takes from it needs to know nothing of this.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import NoScriptError

from graft.config import lua
from graft.config.transport.fence import Fence, FencedOffError
from graft.config.transport.round_trip import Command

ORDER: Final = lua.text(__file__, "fair_order")
REORDER: Final = lua.load(__file__, "fair_reorder")
LONGEST: Final = 10_000  # Messages in a list that is put into another order; it takes Redis about 2 us for each.
DIGEST: Final = hashlib.sha1(ORDER.encode(), usedforsecurity=False).hexdigest()


class Flow:
    """One batch on its list: how far it has been served, in seconds of work divided by its *share*. For any thread."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self._served = 0.0
        self._lock = threading.Lock()

    @property
    def served(self) -> float:
        return self._served

    def use(self, seconds: float) -> None:
        """Workers have spent *seconds* more on it than was expected; fewer, if negative."""
        self.move(seconds / self.share)

    def move(self, by: float) -> None:
        """Redis has moved the batch on *by* so much virtual time."""
        with self._lock:
            self._served = max(0.0, self._served + by)


@dataclass(frozen=True, slots=True)
class FlowMessage:
    """A message of *flow*, ready to be sent: ``text`` is JSON, an object, and ``seconds`` the work that it is."""

    flow: Flow
    seconds: float
    text: str


class FairOrder:
    """Puts messages into lists, in the order of their starts. *run* sends commands, *times* is the key of the times."""

    def __init__(self, run: Callable[[list[Command]], list[Any]], times: str) -> None:
        self._run = run
        self._times = times
        self._is_known = False  # Redis has been sent the script.

    def push(
        self,
        lists: Mapping[str, Sequence[FlowMessage]],
        further: Sequence[Command] = (),
        fence: Fence | None = None,
    ) -> None:
        """Put the messages of *lists* into them, and run *further* commands, in one round trip.

        Raises:
            FencedOffError: *fence* says that this sender may not any more.
        """
        flows = {key: list(dict.fromkeys(message.flow for message in its)) for key, its in lists.items()}
        told = [(key, [flow.served for flow in flows[key]]) for key in flows]

        def commands(is_known: bool) -> list[Command]:
            how = ("EVALSHA", DIGEST) if is_known else ("EVAL", ORDER)
            guard, token = ([fence.key], fence.token) if fence else ([], "")
            return [
                (*how, 2 + len(guard), key, self._times, *guard, token, *_arguments(flows[key], served, lists[key]))
                for key, served in told
            ]

        try:
            replies = self._run([*commands(self._is_known), *further])
        except NoScriptError:  # Another server, or one that was told to forget scripts; it has done all else.
            replies = self._run(commands(is_known=False))
        self._is_known = self._is_known or bool(told)
        for (key, before), after in zip(told, replies, strict=False):
            if after is None:
                raise FencedOffError(f"another process holds the lease of {fence.key if fence else ''}")
            for flow, old, new in zip(flows[key], before, after, strict=True):
                flow.move(float(new) - old)

    def reorder(self, key: str, mark: str, flow: Flow, factor: float, client: Any) -> int:
        """Multiply by *factor* what lies between the waiting messages of *flow*, in whose text is *mark*; how many."""
        old = flow.served
        served, count = REORDER([key], [mark, f"{factor:.6f}", f"{old:.6f}", LONGEST], client)
        flow.move(float(served) - old)
        return int(count)


def _arguments(flows: Sequence[Flow], served: Sequence[float], messages: Sequence[FlowMessage]) -> Iterator[Any]:
    numbers = {flow: number for number, flow in enumerate(flows, 1)}
    yield len(flows)
    yield from (f"{time:.6f}" for time in served)
    for message in messages:
        yield numbers[message.flow]
        yield f"{message.seconds / message.flow.share:.6f}"
        yield message.text
