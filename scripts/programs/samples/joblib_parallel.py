"""joblib's default backend: generators, closures, exceptions, its memory; large arrays, which its processes map."""

import tempfile
from math import sqrt

import numpy as np
from joblib import Memory, Parallel, delayed


def total(array):
    return float(array.sum())


def describe(array, n):
    return type(array).__name__, array.flags.writeable, array.shape, float(array[n])


def overwrite(array, n):
    array[n] = n + 1


def part(array):
    return array[:3]


def fail_at_two(x):
    if x == 2:  # One alone: of several, whichever is first is raised.
        raise ValueError(f"no {x}")


if __name__ == "__main__":
    print(Parallel(n_jobs=2)(delayed(sqrt)(i**2) for i in range(10)))
    print(Parallel(n_jobs=2)(delayed(lambda x, y=2: x * y)(i) for i in range(10)))
    big = np.arange(400_000, dtype=float)
    print(Parallel(n_jobs=2)(delayed(total)(big * i) for i in range(3)))
    for options in ({}, {"mmap_mode": "c"}, {"max_nbytes": None}):
        print(Parallel(n_jobs=2, **options)(delayed(describe)(big, i) for i in range(3)))
    print(Parallel(n_jobs=2)(delayed(part)(big) for _ in range(2)))
    try:
        Parallel(n_jobs=2)(delayed(overwrite)(big, 0) for _ in range(1))
    except ValueError as error:
        print("ValueError", error)
    filled = np.memmap("filled.dat", dtype=float, shape=(200_000,), mode="w+")
    Parallel(n_jobs=2)(delayed(overwrite)(filled, i) for i in range(4))
    print(filled[:5])
    filled.flush()
    read = np.memmap("filled.dat", dtype=float, mode="r")
    print(Parallel(n_jobs=2)(delayed(describe)(read[1:], i) for i in range(3)))
    print(list(Parallel(n_jobs=2, return_as="generator")(delayed(abs)(-i) for i in range(5))))
    try:
        Parallel(n_jobs=2)(delayed(fail_at_two)(i) for i in range(3))
    except ValueError as error:
        print("ValueError", error)
    with tempfile.TemporaryDirectory() as folder:
        cached = Memory(folder, verbose=0).cache(total)
        print(Parallel(n_jobs=2)(delayed(cached)(np.ones(n)) for n in (2, 3)))
