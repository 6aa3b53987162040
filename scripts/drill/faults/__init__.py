"""The faults: how each is caused, what is promised of it, and the stage that it needs. ``catalogue`` lists them.

Imports the drill's ``fault``, ``stage`` and ``ledger``.
"""
