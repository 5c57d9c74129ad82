"""The error that users see as one line."""

from __future__ import annotations


class UserError(Exception):
    """What the user gave cannot be used; the message says what was expected and what to do."""
