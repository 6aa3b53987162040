"""Walks all interleavings of a small deployment: every order of every step, with a death and a jump of the clock.

Histories are played from the beginning again, since nobody can take a step back. A state that was reached before is
left alone: whatever follows from it has been seen, or will be.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from graft.scripts.model import fingerprint
from graft.scripts.model.moves import Budget, Move, Play
from graft.scripts.model.world import Broken, World


@dataclass
class Found:
    """What a walk has found: the broken guarantee with the moves that lead to it, or that all states are good."""

    states: int = 0
    histories: int = 0
    broken: str = ""
    moves: list[Move] = field(default_factory=list)
    is_complete: bool = False


def explore(
    world: World, labels: Sequence[str], *, deaths: int = 1, jumps: int = 1, workers: int = 2, seconds: float = 1e9,
    states: int = 10**9, switches: int | None = None, operations: Sequence[str] = (),
) -> Found:  # fmt: skip
    """Walk until all has been seen, something is broken, or *seconds* or *states* are used up.

    With *switches* all orders are walked in which another goes on that often at most while somebody is in the middle
    of something. The faults are not counted among them.
    """
    found = Found()
    seen: set[str] = set()
    left: deque[tuple[Move, ...]] = deque([()])  # The shortest first: what is broken is found by few moves.
    until = time.monotonic() + seconds
    while left:
        if time.monotonic() > until or len(seen) >= states:
            return found
        path = left.popleft()
        found.histories += 1
        play = Play(world, Budget(list(labels), deaths, jumps, switches, list(operations)), workers)
        try:
            for move in path[:-1]:
                play.repeat(move)
            for move in path[-1:]:
                play.do(move)
            _follow(play, seen, left)
        except Broken as broken:
            found.broken, found.moves, found.states = str(broken), play.moves, len(seen)
            return found
        found.states = len(seen)
    found.is_complete = True
    return found


def _turn(play: Play) -> list[object]:
    """Whose turn it is, where it matters: he goes on, or another, at a price."""
    return [] if play.budget.switches is None else [play.at_work, play.budget.switches]


def _follow(play: Play, seen: set[str], left: deque[tuple[Move, ...]]) -> None:
    """Go on to the end of the history, and note the turns that were not taken."""
    while True:
        budget = play.budget
        name = fingerprint.of(play.world, budget.to_send, budget.deaths, budget.jumps, budget.operations, *_turn(play))
        if name in seen:
            return
        seen.add(name)
        possible = play.possible()
        if not possible:
            play.checks.at_rest()
            return
        left += [(*play.moves, move) for move in possible[1:]]
        play.do(possible[0])
