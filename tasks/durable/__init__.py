"""Durable batches in Redis, which outlive their caller: items in pages, outcomes in blocks, what is under way.

Imports the rooms below it. Callers spool here, workers keep outcomes here, the feeder (sending) and readers read here.
"""
