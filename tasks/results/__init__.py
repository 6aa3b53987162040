"""From the worker back to the caller: stores and announces reports, hears them, searches for those that are late.

Imports queues, delivery and callables. Workers write results here; batches and futures receive them from here.
"""
