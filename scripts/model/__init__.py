"""The delivery protocol as a model: steps the real code one Redis command at a time, in every order that matters.

Imports every other room. Nothing imports it; ``python -m graft.scripts.model`` and its tests run it.
"""
