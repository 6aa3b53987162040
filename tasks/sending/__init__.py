"""From the caller to Redis: cuts items into envelopes, bounds what is in flight, publishes messages.

Imports the rooms below it, results and batch included. ``submit``, the pools and the facades call it.
"""
