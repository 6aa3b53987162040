"""A message as it lies in Redis: its keys and headers, and the large payload beside it.

Imports ``config`` alone. Sending writes messages in this form; queues, delivery and dead_letters read them.
"""
