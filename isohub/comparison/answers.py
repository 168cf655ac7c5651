"""What a worker answered to a probe, held against what it may be: nothing of it is believed.

Texts lose their control characters and all beyond a length, so that none can drive a terminal or fill a report.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from isohub.errors import RemoteProtocolError

__all__ = ["clean", "flag", "number", "seconds", "tensors_by", "text", "texts"]

MAX_TEXT = 20_000
MAX_ITEMS = 200_000

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|[\u202a-\u202e\u2066-\u2069]")


def clean(value: str, limit: int = MAX_TEXT) -> str:
    """Return a text without control characters, and not longer than `limit`."""
    # A surrogate cannot be written to a file.
    whole = _CONTROL.sub("?", value[: limit + 1]).encode("utf-8", "replace").decode("utf-8")
    return whole if len(whole) <= limit else whole[:limit] + "…"


def text(value: object, limit: int = MAX_TEXT) -> str:
    """Return a text that a worker sent.

    Raises:
        RemoteProtocolError: It is none.
    """
    if type(value) is not str:
        raise RemoteProtocolError(f"a {type(value).__name__} where a text is due")
    return clean(value, limit)


def texts(value: object, limit: int = MAX_TEXT) -> list[str]:
    """Return a list of texts that a worker sent.

    Raises:
        RemoteProtocolError: It is none, or too long.
    """
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise RemoteProtocolError(f"a {type(value).__name__} where a list of texts is due")
    return [text(member, limit) for member in value]


def flag(value: object) -> bool | None:
    """Return a truth value that a worker sent, or None.

    Raises:
        RemoteProtocolError: It is neither.
    """
    if value is not None and type(value) is not bool:
        raise RemoteProtocolError(f"a {type(value).__name__} where a truth value is due")
    return value


def number(value: object) -> int:
    """Return a count that a worker sent.

    Raises:
        RemoteProtocolError: It is none.
    """
    if type(value) is not int or not 0 <= value < 2**63:
        raise RemoteProtocolError("no count where one is due")
    return value


def seconds(value: object, at_most: float) -> float:
    """Return the seconds that a call took, as a worker says, which cannot be more than it took seen from here.

    Raises:
        RemoteProtocolError: They cannot be.
    """
    if type(value) is not float or not math.isfinite(value) or not 0 <= value <= at_most:
        raise RemoteProtocolError("a duration that cannot be")
    return value


def tensors_by(value: object, keys: list[Any]) -> dict[Any, list[torch.Tensor]]:
    """Return lists of tensors by key; a worker may leave a key out, and must not add one.

    Raises:
        RemoteProtocolError: It is something else.
    """
    if not isinstance(value, dict) or not value.keys() <= set(keys):
        raise RemoteProtocolError("no tensors by key where they are due")
    for members in value.values():
        if not isinstance(members, list) or not all(isinstance(member, torch.Tensor) for member in members):
            raise RemoteProtocolError("no lists of tensors where they are due")
    return value
