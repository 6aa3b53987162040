"""Ranks the words of the standard library by a map-reduce on the workers: the new API beside the demo's old program.

    python -m graft.scripts.old_program.stdlib_chord --out words.json

The map and the reduce step are the old program's own functions. The counts do not return here: they go from the
workers that made them to the one that reduces them (a Celery chord), and only its result returns.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import graft
from graft.scripts.old_program import stdlib_survey as survey

SHOW_EVERY = 0.5


def show_progress(batch: graft.Batch) -> None:
    progress = batch.progress()
    print(f"{progress.done} of {progress.total} files", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m graft.scripts.old_program.stdlib_chord", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="write words and figures there, as JSON")
    parser.add_argument("--files", type=survey.count_of_files, help="take only so many files")
    arguments = parser.parse_args(argv)
    files = survey.find_files(Path(sysconfig.get_paths()["stdlib"]))[: arguments.files]

    began = time.perf_counter()
    batch = graft.submit(survey.count_words, files, reduce=survey.merge_counts)
    shown = began
    while not batch.done():
        time.sleep(0.01)
        if time.perf_counter() - shown > SHOW_EVERY:
            shown = time.perf_counter()
            show_progress(batch)
    words = batch.collect()
    seconds = time.perf_counter() - began
    show_progress(batch)

    progress = batch.progress()
    found = {
        "words": list(words.items()),
        "files": len(files),
        "seconds": seconds,
        "envelopes": progress.envelopes,
        "retries": progress.retries,
    }
    arguments.out.write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
