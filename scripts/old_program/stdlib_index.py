"""Indexes the standard library of the running interpreter: how large its modules are, and which words they are made of.

    python stdlib_index.py --out index.json

The demo's old program: it was written against ``libs.async_worker_optimization`` and knows of nothing newer. Every file
goes through a pipeline of two stages (outline, measure) and through a batch that counts words; the answers are put
together here. The functions themselves are in ``stdlib_survey.py``, beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stdlib_survey as survey  # type: ignore[import-not-found]  # Beside this file, which runs as a bare program.
from libs.async_worker_optimization import (  # type: ignore[import-not-found]  # The old module is not installed here.
    AsyncWorkerOptimizer,
)

PART = 200  # Files between two lines of progress.


async def survey_files(files: Sequence[str], batch_size: int, max_concurrent: int) -> tuple[list[Any], list[Any]]:
    """The measures and the word counts of *files*, in their order."""
    optimizer = AsyncWorkerOptimizer()
    pipeline = optimizer.setup_pipeline([survey.outline, survey.measure])
    measures: list[Any] = []
    counts: list[Any] = []
    for start in range(0, len(files), PART):
        part = files[start : start + PART]
        measured, counted = await asyncio.gather(
            pipeline.process(part),
            optimizer.optimize_batch_processing(
                part, survey.count_words, batch_size=batch_size, max_concurrent=max_concurrent
            ),
        )
        measures += measured
        counts += counted
        print(f"{len(measures)} of {len(files)} files", file=sys.stderr, flush=True)
    return measures, counts


def summary(index: dict[str, Any], root: Path, seconds: float) -> str:
    totals, longest = index["totals"], index["longest_function"]
    modules = (f"{entry['module']} ({entry['branches']})" for entry in index["modules"][:5])
    words = (f"{word} ({times})" for word, times in index["words"][:8])
    return "\n".join(
        [
            f"{index['files']} files below {root}, {len(index['skipped'])} skipped, in {seconds:.1f} s",
            f"{totals['lines']} lines, {totals['functions']} functions, {totals['classes']} classes, "
            f"{totals['branches']} branches",
            f"longest function: {longest['name']}, {longest['lines']} lines",
            f"most branches: {', '.join(modules)}",
            f"most frequent words: {', '.join(words)}",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Index the standard library of the running interpreter.")
    parser.add_argument("--out", type=Path, help="write the whole index there, as JSON")
    parser.add_argument("--seconds-out", type=Path, help="write the seconds that the work took there")
    parser.add_argument("--files", type=survey.count_of_files, help="take only so many files")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--max-concurrent", type=int, default=5)
    arguments = parser.parse_args()

    root = Path(sysconfig.get_paths()["stdlib"])
    files = survey.find_files(root)[: arguments.files]
    if not files:
        print(f"there are no .py files below {root}", file=sys.stderr)
        return 1

    began = time.perf_counter()
    measures, counts = asyncio.run(survey_files(files, arguments.batch_size, arguments.max_concurrent))
    index = survey.rank(measures, survey.merge_counts(counts), root)
    seconds = time.perf_counter() - began

    print(summary(index, root, seconds))
    if arguments.out:
        arguments.out.write_text(json.dumps(index, sort_keys=True, indent=1) + "\n")
    if arguments.seconds_out:
        arguments.seconds_out.write_text(f"{seconds:.3f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
