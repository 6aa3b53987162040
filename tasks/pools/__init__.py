"""The worker's half of ``compat.worker_pool``: an ordered pool in Redis whose bounds hold in the whole cluster.

Imports sending and the rooms below it. ``compat.worker_pool`` calls it.
"""
