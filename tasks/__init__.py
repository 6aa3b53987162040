"""The work and its guarantees, from submit to outcome: a root that others build on, and a room for each part.

Imports ``config`` alone. ``compat``, ``workers`` and ``scripts`` call it. The order in which the rooms may import each
other is the contract "The rooms of tasks/" in pyproject.toml; docs/architecture.md has a picture.
"""
