"""Autograd graphs that end at the border: the worker keeps them, the parent's graph goes on.

A tensor of the parent's that asks for gradients enters as the beginning of a graph here. A result that
was computed from such tensors or from parameters leaves with the name of its graph and of the leaves that
this leads back to; the parent makes one node of it, which asks for `backward`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from isohub.shm.tensors import tensor_over
from isohub.wire.messages import Graph, Numbered
from isohub.worker.objects import Objects

__all__ = ["Graphs"]

_UNKNOWN: tuple[Callable[[], torch.Tensor | None], int, int] = (lambda: None, 0, 0)


class Graphs:
    """The graphs of this worker, and the numbers of the parent's tensors in them.

    Args:
        objects: The table of what the parent holds handles of.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        # By id of the tensor: itself, its number, and its version when it came.
        self._numbers: dict[int, tuple[weakref.ref[torch.Tensor], int, int]] = {}

    def enter(self, tensor: torch.Tensor, numbered: Numbered, asks: bool) -> torch.Tensor:
        """Return `tensor`, just received, as what it is in the parent.

        Args:
            tensor: A plain one.
            numbered: What it is in the parent.
            asks: Whether it asks for gradients.
        """
        leaf = torch.nn.Parameter(tensor, asks) if numbered.kind == "parameter" else tensor.requires_grad_()
        # Weakly, by a dictionary that knows no tensor: two of them compare element by element.
        numbers, key = self._numbers, id(leaf)
        numbers[key] = (weakref.ref(leaf, lambda _: numbers.pop(key, None)), numbered.number, leaf._version)
        if numbered.kind != "computed":
            return leaf
        # In the parent something computed it, so that code may write to it in place, as to no leaf.
        with torch.enable_grad():
            entered: torch.Tensor = _Enter.apply(leaf)  # type: ignore[no-untyped-call]
        return entered

    def numbered(self, tensors: list[tuple[int, torch.Tensor]]) -> list[Numbered]:
        """Return which of these tensors, each with its place in a payload, are the parent's own.

        One that was written to is not: the parent's has the old values.
        """
        found = []
        for place, tensor in dict(tensors).items() if self._numbers else ():
            ours, number, version = self._numbers.get(id(tensor), _UNKNOWN)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            if ours() is tensor and (is_parameter or tensor._version == version):
                found.append(Numbered(place, number, "parameter" if is_parameter else "leaf"))
        return found

    def leave(self, noted: list[tuple[int, torch.Tensor]]) -> Graph | None:
        """Return the graph behind tensors of a payload, if there is one.

        Args:
            noted: Those that ask for gradients, each with its place in the payload.
        """
        outputs = [(place, tensor) for place, tensor in dict(noted).items() if tensor.grad_fn is not None]
        if not outputs:
            return None
        edges = [get_gradient_edge(tensor) for _, tensor in outputs]
        leaves, names, hidden = [], [], []
        for leaf in _leaves(edge.node for edge in edges):
            name = self._name(leaf)
            if name is None:
                hidden.append(leaf)
            else:
                leaves.append(leaf)
                names.append(name)
        handle = self._objects.export(_Graph(edges, leaves, hidden))
        return Graph(handle, [place for place, _ in outputs], names)

    def _name(self, leaf: torch.Tensor) -> tuple[int, int] | None:
        place = self._objects.trees.place_of(leaf)
        if place is not None:
            return place
        ours, number, _ = self._numbers.get(id(leaf), _UNKNOWN)
        return (0, number) if ours() is leaf else None


class _Graph:
    """One graph; the parent holds it as long as its own node lives.

    Args:
        edges: Where the outputs come from; the outputs themselves are not kept.
        leaves: What the parent can ask gradients of.
        hidden: Leaves that only the repository's code knows of.
    """

    def __init__(self, edges: list[GradientEdge], leaves: list[torch.Tensor], hidden: list[torch.Tensor]) -> None:
        self._edges = edges
        self._leaves = leaves
        self._hidden = hidden
        self._is_kept = False

    def keep(self) -> None:
        """Stay as it is after each backward: another graph, by which gradients are derived again, is part of it."""
        self._is_kept = True

    def backward(self, gradients: list[torch.Tensor | None], wanted: list[int], keep: bool) -> list[Any]:
        """Return the gradients of the wanted leaves, None for those that nothing depends on.

        Args:
            gradients: That of each output; None where there is none.
            wanted: Which leaves.
            keep: Whether another backward will follow.
        """
        both = zip(self._edges, gradients, strict=True)
        pairs = [(edge, gradient) for edge, gradient in both if gradient is not None]
        inputs = [self._leaves[index] for index in wanted] + self._hidden
        if not pairs or not inputs:
            return [None] * len(wanted)
        edges, given = zip(*pairs, strict=True)
        again = torch.is_grad_enabled()  # `create_graph=True` in the parent
        self._is_kept |= again
        found = torch.autograd.grad(
            edges, inputs, given, retain_graph=keep or self._is_kept, create_graph=again, allow_unused=True
        )
        for leaf, gradient in zip(self._hidden, found[len(wanted) :], strict=True):
            if gradient is not None:
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return list(found[: len(wanted)])


class _Enter(torch.autograd.Function):
    """The identity, of another tensor object over the same memory."""

    @staticmethod
    def forward(_: Any, leaf: torch.Tensor) -> torch.Tensor:
        # Not a view in autograd's eyes: one of a leaf could not be written to either.
        offset = int(leaf.storage_offset()) * leaf.itemsize
        return tensor_over(leaf.untyped_storage(), leaf.dtype, offset, leaf.shape, leaf.stride())

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def _leaves(nodes: Iterable[Any]) -> list[torch.Tensor]:
    """Return the leaves that ask for gradients behind these nodes."""
    found: list[torch.Tensor] = []
    # A node's Python object is the same only while somebody has it.
    seen: set[Any] = set()
    ahead = list(nodes)
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        following = node.next_functions
        if following:
            ahead.extend(function for function, _ in following if function is not None)
        elif hasattr(node, "variable"):
            found.append(node.variable)
    return found
