"""Primitives in Redis that all processes share by name: semaphore, rate limit, circuit, cache, channel.

Imports queues and the rooms below it. The facades in ``compat`` build on it; nothing on the path of an item does.
"""
