"""``python -m graft.scripts.model``: walks or plays the delivery protocol, and says what is broken and how.

explore     every order of every step of a small deployment, for as long as it takes
play        random histories of a larger one, hour after hour
variants    the mistakes that are known: each must be found
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Final

from graft.scripts.console import complain, output, say
from graft.scripts.model.seen_states import SeenStates
from graft.scripts.stack.local_stack import LocalStack, own_environ

if TYPE_CHECKING:
    from graft.scripts.model.explorer import Found
    from graft.scripts.model.world import World

SETTINGS: Final = {
    "GRAFT_SIGNING": "off", "GRAFT_ATTEMPTS_BYTES": "0", "GRAFT_FAILURE_LETTERS": "all", "GRAFT_REDIS_CHECKS": "off",
    "GRAFT_VISIBILITY_TIMEOUT": "60", "GRAFT_RUN_LIMIT": "3",
}  # fmt: skip
PROGRESS: Final = 60.0  # Seconds between two lines about a walk.
_shared: list[SeenStates] = []  # What all walkers have seen.


@contextmanager
def deployed() -> Iterator[World]:
    """The model on a Redis of its own. This process is nothing else from now on."""
    stack = LocalStack({}, environ=own_environ())
    stack.start()
    try:
        os.environ.update(stack.variables | SETTINGS)
        # Settings are read when they are first asked for.
        from graft.celery import app
        from graft.scripts.model.world import World

        logging.disable(logging.CRITICAL)
        world = World(app)
        world.redis.config_set("appendonly", "no")
        with world.installed():
            yield world
            world.close()
    finally:
        stack.stop()


def explore(arguments: argparse.Namespace) -> bool:
    seen, count = SeenStates(), arguments.processes
    with ProcessPoolExecutor(count, get_context("fork"), _share, (seen,)) as walkers:
        under_way = [walkers.submit(_walk, arguments, order) for order in range(count)]
        try:
            while wait(under_way, timeout=PROGRESS).not_done:
                say(f"{len(seen)} states so far, {seen.ends} of them at rest")
        except KeyboardInterrupt:
            complain(f"stopped after {len(seen)} states, {seen.ends} of them at rest")
            raise
    walks = [walk.result() for walk in under_way]
    for found in walks:
        if found.broken:
            tell(found.broken, found.moves, found.log)
    extent = "all states" if all(found.is_complete for found in walks) else "not all, the time was up"
    output().print(f"{len(seen)} states, {seen.ends} of them at rest: {extent}")
    return not any(found.broken for found in walks)


def _share(seen: SeenStates) -> None:
    _shared.append(seen)


def _walk(arguments: argparse.Namespace, order: int) -> Found:
    with deployed() as world:
        from graft.scripts.model.explorer import explore as walk

        return walk(
            world, arguments.messages.split(","), deaths=arguments.deaths, jumps=arguments.jumps, seen=_shared[-1],
            order=order, seconds=arguments.seconds, switches=arguments.switches,
            operations=list(filter(None, arguments.operator.split(","))), is_reduced=not arguments.all_orders,
        )  # fmt: skip


def play(world: World, arguments: argparse.Namespace) -> bool:
    from graft.scripts.model import machine
    from graft.scripts.model.world import Broken

    kinds = {"peaceful": machine.Peaceful, "violent": machine.Violent}
    until = time.monotonic() + arguments.seconds
    for number in itertools.count(arguments.seed):
        try:
            machine.play(
                world, kinds[arguments.kind], examples=arguments.examples, steps=arguments.steps, seed=number,
                shrinks=arguments.shrink,
            )  # fmt: skip
        except Broken as broken:
            tell(f"{broken} (--seed {number})", (), world.log)
            return False
        say(f"seed {number}: {arguments.examples} {arguments.kind} histories are good")
        if time.monotonic() > until:
            return True
    return True


def variants(world: World, arguments: argparse.Namespace) -> bool:
    from graft.scripts.model.explorer import hunt
    from graft.scripts.model.variants import VARIANTS

    missed = []
    for name in [arguments.only] if arguments.only else VARIANTS:
        one = VARIANTS[name]
        with one.installed(world):
            found = hunt(
                world, one.labels, deaths=one.deaths, jumps=one.jumps, operations=one.operations,
                seconds=arguments.seconds,
            )  # fmt: skip
        output().print(f"{name}: {found.broken or 'NOT FOUND'} ({found.states} states)")
        if not found.broken:
            missed.append(name)
    return not missed


def tell(broken: str, moves: Sequence[object], log: Sequence[str]) -> None:
    """Print how a guarantee was broken."""
    complain(broken)
    for move in moves:
        output().print(f"  {move}")
    output().print("what happened:")
    for line in log:
        output().print(f"  {line}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m graft.scripts.model", description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(required=True)
    walks = kinds.add_parser("explore", help="every order of every step of two workers and a caller")
    walks.add_argument("--messages", default="plain-a,fails-first-b,raises-c", help="what the tasks do, by commas")
    walks.add_argument("--deaths", type=int, default=1, help="how many processes die, at any moment")
    walks.add_argument("--jumps", type=int, default=1, help="how often the clock of Redis is set forward")
    walks.add_argument(
        "--switches",
        type=int,
        help="how often another goes on while somebody is in the middle of something; any number",
    )
    walks.add_argument(
        "--operator", default="", help="what the operator does, by commas: cancel=TASK, replay, pause, resume"
    )
    walks.add_argument(
        "--all-orders", action="store_true", help="also of steps that nobody can notice: the ends are the same"
    )
    walks.add_argument("--seconds", type=float, default=1e9, help="give up after so long")
    walks.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="how many walk at once; as many as there are processors"
    )
    walks.set_defaults(run=explore)
    plays = kinds.add_parser("play", help="random histories of three workers, a caller and an operator")
    plays.add_argument("--kind", choices=["peaceful", "violent"], default="violent")
    plays.add_argument("--examples", type=int, default=100, help="histories for each seed")
    plays.add_argument("--steps", type=int, default=50, help="rules in one history, of which some are many moves")
    plays.add_argument("--seed", type=int, default=1, help="the first of them")
    plays.add_argument("--seconds", type=float, default=0.0, help="go on with further seeds for so long")
    plays.add_argument("--shrink", action="store_true", help="look for a shorter history that breaks the same")
    plays.set_defaults(run=lambda arguments: _deployed(play, arguments))
    known = kinds.add_parser("variants", help="protocols that are known to be wrong")
    known.add_argument("--only", help="one of them")
    known.add_argument("--seconds", type=float, default=120.0, help="for each")
    known.set_defaults(run=lambda arguments: _deployed(variants, arguments))
    arguments = parser.parse_args(argv)
    if getattr(arguments, "processes", 1) < 1:
        parser.error(f"--processes {arguments.processes}: at least 1 has to walk")
    try:
        return 0 if arguments.run(arguments) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _deployed(command: Callable[[World, argparse.Namespace], bool], arguments: argparse.Namespace) -> bool:
    with deployed() as world:
        return command(world, arguments)


if __name__ == "__main__":
    sys.exit(main())
