"""tqdm's process_map, without a bar."""

from tqdm.contrib.concurrent import process_map


def cube(x):
    return x**3


if __name__ == "__main__":
    print(process_map(cube, range(20), max_workers=2, chunksize=3, disable=True))
