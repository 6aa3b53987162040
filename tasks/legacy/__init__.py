"""The registered tasks of the earlier proof of concept, under their old names. No other room knows these names.

May import every room of ``tasks`` but pools. Workers load it; ``compat`` calls it.
"""
