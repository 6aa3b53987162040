"""The caller in the drill: sends tasks at a steady rate and writes down which of them the broker took.

``python -m graft.scripts.drill.produce '{"count": 500, "rate": 100}'``, with the stage's environment.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from graft.scripts.drill import app as drill
from graft.scripts.drill.ledger import note

SLOW = 1.0  # Seconds after which a send that succeeds is written down as one that kept its caller waiting.


def produce(
    count: int, rate: float = 100.0, seconds: float = 0.02, long_share: float = 0.1, long: float = 1.0,
    task: str = "work", prefix: str = "t", ids: bool = False, patience: float = 120.0, **options: Any,
) -> None:  # fmt: skip
    """Send *count* tasks, *rate* a second, each of *seconds* and every tenth of *long* seconds."""
    every = round(1 / long_share) if long_share else 0
    began = time.monotonic()
    for number in range(count):
        label = f"{prefix}{number}"
        lasts = long if every and number % every == 0 else seconds
        arguments = (label,) if task in ("kill_process", "kill_worker") else (label, lasts)
        if ids:
            options["task_id"] = f"drill-{label}"
        _send(getattr(drill, task), label, arguments, options, began + patience)
        time.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))


def _send(task: Any, label: str, arguments: tuple[Any, ...], options: dict[str, Any], deadline: float) -> None:
    """Send one, again under another label while the broker refuses: a refusal is the caller's to answer."""
    attempt = 0
    while True:
        tried = f"{label}.{attempt}" if attempt else label
        began = time.monotonic()
        try:
            task.apply_async((tried, *arguments[1:]), **options)
        except Exception as error:
            note("unsure", tried)
            note("refused", f"{type(error).__name__}:{time.monotonic() - began:.1f}")
            if time.monotonic() > deadline:
                return
            attempt += 1
            time.sleep(0.2)
        else:
            note("sent", tried)
            if (took := time.monotonic() - began) > SLOW:
                note("slow", f"{took:.1f}")
            return


if __name__ == "__main__":
    what = json.loads(sys.argv[1])
    if "chords" in what:
        for number in range(what["chords"]):
            drill.send_chord(f"{what.get('prefix', 'c')}{number}")
            note("sent", f"{what.get('prefix', 'c')}{number}")
    else:
        produce(**what)
