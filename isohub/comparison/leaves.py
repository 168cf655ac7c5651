"""Nested outputs taken apart: each tensor, number and text in them, by its path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from isohub.comparison.answers import clean
from isohub.model.objects import RemoteObject
from isohub.model.records import DataRecord

__all__ = ["MAX_LEAVES", "Leaf", "leaves_of"]

Leaf = torch.Tensor | str
"""A tensor, or a text that stands for what is no number: equal texts, equal values."""

# Outputs are a worker's: one of endless depth or width is cut off.
MAX_LEAVES = 10_000
_MAX_DEPTH = 50


def leaves_of(output: Any) -> dict[str, Leaf]:
    """Return the parts of an output by their paths: `""` for a bare tensor, `[0]`, `['boxes']`, `.logits`."""
    found: dict[str, Leaf] = {}
    _walk(output, "", 0, found)
    return found


def _walk(value: Any, path: str, depth: int, found: dict[str, Leaf]) -> None:
    if len(found) >= MAX_LEAVES:
        return
    members = None if depth >= _MAX_DEPTH else _members(value)
    if members is None:
        found[path] = _leaf(value)
        return
    if not members:
        found[path] = f"empty {type(value).__name__}"
    for name, member in members:
        _walk(member, path + name, depth + 1, found)


def _members(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(f"[{clean(repr(key), 100)}]", member) for key, member in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{clean(str(name), 100)}", member) for name, member in zip(value._fields, value, strict=False)]
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return [(f"[{place}]", member) for place, member in enumerate(value)]
    if isinstance(value, DataRecord):
        return [(f".{clean(name, 100)}", member) for name, member in value._isohub_fields().items()]
    return None


def _leaf(value: Any) -> Leaf:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, bool | int | float | complex):
        try:
            return torch.tensor(value)
        except (OverflowError, RuntimeError):  # an int of more than 64 bits
            return repr(value)
    if type(value).__module__ == "numpy":
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError):  # texts, objects
            return clean(repr(value), 2000)
    if isinstance(value, RemoteObject):
        return f"an object of type {clean(value._isohub_type, 200)}"
    return clean(f"{type(value).__name__} {value!r}", 2000)
