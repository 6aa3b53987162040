"""Reads and changes what waits on the queues: depth, peek, locate, calls under way, pause, purge, aging.

Imports dead_letters, since a purged message is kept there. The commands, health and results call it.
"""
