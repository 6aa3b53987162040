"""Facades with the names, signatures and errors of the old modules, and of the standard executors.

Imports ``tasks`` and ``config``, never ``workers``. Only callers import it. ``python -m graft.compat`` redirects the
imports of an unchanged program here.
"""
