"""pandarallel: a pool of its own context for each call, and a manager's queue where it shows progress."""

import io
from contextlib import redirect_stdout

import pandas
from pandarallel import pandarallel


def priced(row):
    return row["price"] * row["count"] + len(row["name"])


def summed(group):
    return group["price"].sum()


def main():
    frame = pandas.DataFrame(
        {
            "name": [f"thing {number}" for number in range(500)],
            "price": [number % 17 for number in range(500)],
            "count": [number % 5 for number in range(500)],
        }
    )
    for in_memory, shows in ((False, False), (True, False), (False, True)):
        pandarallel.initialize(nb_workers=2, progress_bar=shows, verbose=0, use_memory_fs=in_memory)
        with redirect_stdout(io.StringIO()):  # The bars move when it suits them.
            prices = frame.parallel_apply(priced, axis=1).sum()
            doubled = frame.price.parallel_map(lambda price: price * 2).sum()
            groups = frame.groupby("count").parallel_apply(summed).tolist()
        print(prices, doubled, groups)
    try:
        frame.parallel_apply(lambda row: row["missing"], axis=1)
    except KeyError as error:
        print(repr(error))


if __name__ == "__main__":
    main()
