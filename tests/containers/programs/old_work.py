"""The functions of the old program's pool: a module beside the program here, and under /programs in the workers."""

import asyncio
import time


def slow_square(number):
    time.sleep(0.03)
    return number * number


async def slow_cube(number):
    await asyncio.sleep(0.03)
    return number**3
