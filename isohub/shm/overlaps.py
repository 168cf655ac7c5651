"""Tensors of one payload that lie over each other and ask for gradients.

Autograd knows which of them are views, and what a write to one does to the others; bytes alone do not tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isohub.shm.tensors import is_dense, span_of

if TYPE_CHECKING:
    import torch

__all__ = ["overlaps"]


def overlaps(noted: list[tuple[int, torch.Tensor]]) -> tuple[dict[int, int], set[int]]:
    """Find tensors that ask for gradients and share memory.

    Args:
        noted: Tensors, each with its place in the payload.

    Returns:
        The places of those that can be said as views, each with the place of what it is a view of; and the
        places of the others, all but one of each group, which have to be copied apart.
    """
    by_storage: dict[int, list[tuple[int, int, int, torch.Tensor]]] = {}
    for place, tensor in dict(noted).items():
        if tensor.requires_grad and not tensor.is_meta and tensor.numel() and not (tensor.is_conj() or tensor.is_neg()):
            spans = by_storage.setdefault(tensor.untyped_storage().data_ptr(), [])
            spans.append((*span_of(tensor), place, tensor))
    views: dict[int, int] = {}
    apart: set[int] = set()
    for spans in by_storage.values():
        for group in _groups(spans) if len(spans) > 1 else ():
            begin, end, root_place, root = max(group, key=lambda span: (span[1] - span[0], span[3]._base is None))
            whole = is_dense(root) and all(begin <= first and last <= end for first, last, *_ in group)
            for *_, place, tensor in group:
                if whole and tensor is not root and _is_view(tensor, root):
                    views[place] = root_place
                elif tensor is not root:
                    apart.add(place)
    return views, apart


def _groups(
    spans: list[tuple[int, int, int, torch.Tensor]],
) -> list[list[tuple[int, int, int, torch.Tensor]]]:
    groups: list[list[tuple[int, int, int, torch.Tensor]]] = []
    stop = -1
    for span in sorted(spans, key=lambda span: span[:3]):
        if span[0] >= stop:
            groups.append([])
        groups[-1].append(span)
        stop = max(stop, span[1])
    return groups


def _is_view(tensor: torch.Tensor, root: torch.Tensor) -> bool:
    """Return whether autograd takes `tensor` for a view of `root`, or of what `root` is a view of."""
    if tensor.grad_fn is None or root.grad_fn is None or tensor.dtype is not root.dtype or tensor._base is None:
        return False
    return tensor._base is (root if root._base is None else root._base)
