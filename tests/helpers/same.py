"""Equality that is as strict as "the same result" means: type, dtype, layout in memory and every bit; and twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import isohub

__all__ = ["assert_same", "both", "raw"]


def both(repo: str) -> tuple[Any, Any]:
    """Return the module of the entrypoint `net` in this process, and its isolated twin."""
    torch.manual_seed(0)
    plain = isohub.load(repo, "net", isolate=False)
    torch.manual_seed(0)
    return plain, isohub.load(repo, "net")


def raw(tensor: torch.Tensor) -> bytes:
    """Return the elements of a tensor in order, as bytes; of any dtype."""
    dense = tensor.detach().resolve_conj().resolve_neg()
    out = torch.empty(dense.numel() * dense.element_size(), dtype=torch.uint8)
    flat = out.view(dense.dtype) if dense.numel() else torch.empty(0, dtype=dense.dtype)
    # Narrow and odd dtypes have no copy kernel, so elements move as integers of their width.
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[dense.element_size()]
    flat.view(width).reshape(dense.shape).copy_(dense.view(width))
    return out.numpy().tobytes()


def assert_same(expected: object, actual: object, where: str = "value") -> None:
    """Fail unless `actual` is `expected`, down to the types of nested members and the bits of tensors."""
    assert type(expected) is type(actual), f"{where}: {type(expected)} became {type(actual)}"
    if isinstance(expected, torch.Tensor):
        assert isinstance(actual, torch.Tensor)
        what = [(t.dtype, t.shape, t.stride(), t.device, t.requires_grad) for t in (expected, actual)]
        assert what[0] == what[1], where
        if expected.device.type != "meta":
            assert raw(expected) == raw(actual), f"{where}: the values differ"
    elif isinstance(expected, np.ndarray | np.generic):
        assert (expected.dtype, expected.shape) == (actual.dtype, actual.shape), where
        assert expected.tobytes() == actual.tobytes(), f"{where}: {expected!r} became {actual!r}"
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(actual), where
        for i, (one, other) in enumerate(zip(expected, actual, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(expected, dict):
        assert_same(list(expected), list(actual), f"{where} keys")
        for key, member in expected.items():
            assert_same(member, actual[key], f"{where}[{key!r}]")
    elif isinstance(expected, float | complex):
        # NaN is NaN, and 0.0 is not -0.0.
        assert repr(expected) == repr(actual), where
    else:
        assert expected == actual, where
