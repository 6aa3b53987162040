"""dask.bag with its process scheduler."""

import dask
import dask.bag as db


def odd(x):
    return x % 2


if __name__ == "__main__":
    with dask.config.set(scheduler="processes", num_workers=2):
        bag = db.from_sequence(range(200), npartitions=8)
        print(bag.filter(odd).map(lambda x: x * x).sum().compute())
        print(sorted(bag.groupby(odd).map(lambda pair: (pair[0], len(pair[1]))).compute()))
