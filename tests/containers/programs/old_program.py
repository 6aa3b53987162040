"""Written against the old module, and never changed: prints its results as one line of JSON."""

import asyncio
import json
import sys

from libs.async_worker_optimization import AsyncWorkerOptimizer
from old_work import slow_cube, slow_square


async def main(count):
    optimizer = AsyncWorkerOptimizer()
    squares = []
    for start in range(0, count, 100):
        part = range(start, min(count, start + 100))
        squares += await optimizer.optimize_batch_processing(part, slow_square, batch_size=5, max_concurrent=4)
        print(f"{len(squares)} of {count}", file=sys.stderr, flush=True)
    cubes = await optimizer.optimize_batch_processing(range(count), slow_cube, batch_size=20, max_concurrent=5)
    print(json.dumps({"squares": squares, "cubes": cubes}))


asyncio.run(main(int(sys.argv[1])))
