"""Settings, queues, schedule, Redis clients, the app, the transport.

Imports nothing of ours; every other room imports it.
"""
