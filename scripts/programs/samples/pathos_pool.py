"""pathos: lambdas and closures on a pool, by dill."""

from pathos.multiprocessing import ProcessPool

if __name__ == "__main__":
    factor = 3
    pool = ProcessPool(nodes=2)
    print(pool.map(lambda x: x * factor, range(10)))
    print(list(pool.imap(lambda x, y: x + y, range(4), range(4))))
    pool.close()
    pool.join()
