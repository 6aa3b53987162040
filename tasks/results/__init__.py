"""From the worker back to the caller: stores and announces reports, receives them, searches for late ones.

Imports queues, delivery and callables. Workers write results here; batches and futures receive them from here.
"""
