"""Which workers live, and what has run: heartbeats, statistics for each function, load, traces.

Imports queues and the rooms below it. Workers and running write; commands, health and the batch sender read.
"""
