"""The slots and the order of worker pools, which hold in the whole cluster.

Imports results, messages and the rooms below. ``running`` asks for a slot here, ``sending`` and
``compat.worker_pool`` for places in a pool's queue.
"""
