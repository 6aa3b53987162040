"""scipy's workers=2: a differential evolution, and a map of its own."""

from itertools import pairwise

from scipy.optimize import brute, differential_evolution


def rosenbrock(x):
    return sum(100.0 * (b - a**2) ** 2 + (1 - a) ** 2 for a, b in pairwise(x))


if __name__ == "__main__":
    bounds = [(-2, 2)] * 3
    found = differential_evolution(rosenbrock, bounds, workers=2, updating="deferred", seed=3, maxiter=15, polish=False)
    print(found.x, found.fun, found.nfev)
    print(brute(rosenbrock, [(-1, 1, 0.5)] * 3, workers=2, finish=None))
