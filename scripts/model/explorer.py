"""Walks all interleavings of a small deployment: every order of every step, with a death and a jump of the clock.

``explore`` tries each of the moves that are possible from where it is (branches.py), until all have been seen. Several
may do so at once, each on a world of its own and in another order, and leave to the others what these have seen first:
when all have come to their end, nothing is left. ``hunt`` plays histories from the beginning, those with the fewest
turns off the usual way first: a mistake shows soon there. A state that was reached before is left alone: whatever
follows from it has been seen, or will be.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from graft.scripts.model import fingerprint
from graft.scripts.model.branches import Branches
from graft.scripts.model.moves import Budget, Move, Play
from graft.scripts.model.seen_states import SeenStates
from graft.scripts.model.world import Broken, World

COMMON: Final = 8  # Moves from the beginning that all walkers make.
LIMIT = "limit"  # The walk ends there, and nothing is broken.


@dataclass
class Found:
    """What a walk has found: the broken guarantee with the moves that lead to it, or that all states are good."""

    states: int = 0
    broken: str = ""
    moves: list[Move] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    is_complete: bool = False


def explore(
    world: World, labels: Sequence[str], *, deaths: int = 1, jumps: int = 1, workers: int = 2, seconds: float = 1e9,
    switches: int | None = None, operations: Sequence[str] = (), seen: SeenStates | None = None, order: int = 0,
    is_reduced: bool = True,
) -> Found:  # fmt: skip
    """Walk until all has been seen, something is broken, or *seconds* are used up.

    With *switches* all orders are walked in which another goes on that often at most while somebody is in the middle
    of something. The faults are not counted among them. *seen* is what others walk, too, who have another *order*.
    Where it *is_reduced*, orders that nobody can tell apart are left out (independence.py).
    """
    budget = Budget(list(labels), deaths, jumps, switches, list(operations))
    play = Play(world, budget, workers, is_reduced=is_reduced)
    walk = _Walk(play, Branches(world), time.monotonic() + seconds, SeenStates() if seen is None else seen, order)
    with walk.branches.possible():
        answer = walk.follow()
    if answer is not None:
        walk.seen.stop()
    found = answer if isinstance(answer, Found) else Found(is_complete=answer is None)
    found.states = len(walk.seen)
    return found


def hunt(
    world: World, labels: Sequence[str], *, deaths: int = 1, jumps: int = 1, workers: int = 2, seconds: float = 1e9,
    operations: Sequence[str] = (),
) -> Found:  # fmt: skip
    """Look for something that breaks, for *seconds* or until all has been seen."""
    seen: set[str] = set()
    left: deque[tuple[Move, ...]] = deque([()])
    until = time.monotonic() + seconds
    while left and time.monotonic() < until:
        path = left.popleft()
        play = Play(world, Budget(list(labels), deaths, jumps, None, list(operations)), workers)
        try:
            for move in path:
                play.do(move)
            while (name := _name(play)) not in seen:
                seen.add(name)
                possible = play.possible()
                if not possible:
                    play.checks.at_rest()
                    break
                left += [(*play.moves, move) for move in possible[1:]]
                play.do(possible[0])
        except Broken as broken:
            return Found(len(seen), str(broken), play.moves, world.log)
    return Found(len(seen), is_complete=not left)


def _name(play: Play) -> str:
    """The state's name. Whose turn it is matters where others go on at a price."""
    budget = play.budget
    turn = [] if budget.switches is None else [play.under_way(), budget.switches]
    also = (budget.deaths, budget.jumps, budget.operations, *turn)
    may_come_back = bool(budget.operations) or play.world.operator is not None
    return fingerprint.of(play.world, budget.to_send, *also, may_come_back=may_come_back)


class _Walk:
    def __init__(self, play: Play, branches: Branches, until: float, seen: SeenStates, order: int) -> None:
        self.play, self.branches, self.until, self.seen = play, branches, until, seen
        self.own, self.is_first = SeenStates(), True
        self.random = random.Random(order) if order else None

    def _is_new(self, name: str) -> bool:
        """Whether to go on from the state *name*. The first few are everybody's: each goes another way from there."""
        self.is_first = self.seen.add(name)
        return self.own.add(name) if len(self.play.moves) <= COMMON else self.is_first

    def follow(self, first: Move | None = None) -> object:
        """Go on from here, with the move *first*, and come back with what is broken; None where all is good."""
        play = self.play
        try:
            if first is not None:
                play.do(first)
            while self._is_new(_name(play)):
                if time.monotonic() > self.until or self.seen.is_stopped:
                    return LIMIT
                possible = play.possible()
                if not possible:
                    play.checks.at_rest()
                    if self.is_first:
                        self.seen.end()
                    break
                if self.random is not None:
                    self.random.shuffle(possible)
                if len(possible) > 1 and (answer := self.branches.each(possible[1:], self.follow)) is not None:
                    return answer
                play.do(possible[0])
        except Broken as broken:
            return Found(broken=str(broken), moves=play.moves, log=play.world.log)
        return None
