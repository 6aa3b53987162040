"""Why a pool stays on this machine."""

from __future__ import annotations


class StaysHomeError(Exception):
    """The pool runs in processes of the standard library; the message says why, and what to change."""
