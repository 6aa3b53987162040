"""A private Redis with workers, Beat and Flower, which ends with its owner and leaves nothing behind.

Imports ``config``. ``scripts.dev``, the demo, the benchmark, the drill and the tests start it.
"""
