"""The pages, one module for each: what it asks Redis, what its buttons do, and its addresses.

Imports the frame and what that stands on. ``acts`` and ``install`` find the pages by name.
"""
