"""Periodic removal of what nothing else removes from Redis: expired results, orphaned records, old dead letters.

Imports results, dead_letters and queues. Beat calls it, through ``graft.maintenance.*`` tasks.
"""
