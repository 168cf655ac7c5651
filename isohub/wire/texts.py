"""Texts of a worker's that people get to see."""

from __future__ import annotations

import re

__all__ = ["clean"]

# What drives a terminal (the control characters but tab and line feed), and what makes a line read otherwise than it
# is (line separators, and the marks that turn the direction of writing).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def clean(text: str, limit: int = 200_000) -> str:
    """Return `text`, cut to `limit` characters, without what could drive or deceive the user's terminal."""
    return _CONTROL.sub("?", text[:limit])
