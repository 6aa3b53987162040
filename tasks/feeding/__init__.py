"""Durable batches from Redis to the workers: what a caller spools is sent by the one worker that has the lease.

Imports sending and what is below it. ``submit`` spools here; ``workers/bootsteps/batch_feeder.py`` runs the feeder.
"""
