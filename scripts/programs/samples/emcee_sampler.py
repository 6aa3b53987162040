"""emcee with a pool; the data is a global of the script."""

from multiprocessing import Pool

import emcee
import numpy as np

data = None


def log_probability(theta):
    return -0.5 * float(((theta - data) ** 2).sum())


if __name__ == "__main__":
    data = np.array([1.0, 2.0])
    np.random.seed(7)
    start = np.random.randn(8, 2)
    with Pool(2) as pool:
        sampler = emcee.EnsembleSampler(8, 2, log_probability, pool=pool)
        sampler.run_mcmc(start, 20)
    print(sampler.get_chain(flat=True)[-3:], sampler.acceptance_fraction)
