"""Autograd graphs that end at the border: the worker keeps them, the parent's graph goes on.

A tensor of the parent's that asks for gradients enters as the beginning of a graph here. A result that
was computed from such tensors or from parameters leaves with the name of its graph and of the leaves that
this leads back to; the parent makes one node of it, which asks for `backward`.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, get_gradient_edge

from isohub.errors import LocalProtocolError
from isohub.shm.tensors import tensor_over
from isohub.wire.messages import Graph, Numbered
from isohub.worker.objects import Objects
from isohub.worker.weights import give_back

__all__ = ["Graphs"]

# From this size on a gradient's own memory is given back to the system at once, or it would be there twice; new pages
# for the next one take a fraction of the time in which it is computed. Smaller ones find it again in the C library.
LARGE_BYTES = 16 << 20
# In the metadata of a node: the graph that it is counted in.
_GRAPH = "isohub"
_UNKNOWN: tuple[Callable[[], torch.Tensor | None], int, int] = (lambda: None, 0, 0)


class Graphs:
    """The graphs of this worker, and the numbers of the parent's tensors in them.

    Args:
        objects: The table of what the parent holds handles of.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        # Outputs of graphs of this exchange: (node, which of its outputs) -> (-handle of the graph, position).
        self._borders: dict[tuple[Any, int], tuple[int, int]] = {}
        self._came: list[tuple[int, torch.Tensor]] = []  # with this exchange
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
        self._came.append((numbered.number, leaf))
        if numbered.kind != "computed":
            return leaf
        # In the parent something computed it, so that code may write to it in place, as to no leaf.
        with torch.enable_grad():
            entered: torch.Tensor = _Enter.apply(leaf, numbered.number)  # type: ignore[no-untyped-call]
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

    def leave(self, noted: list[tuple[int, torch.Tensor]], views: dict[int, int]) -> Graph | None:
        """Return the graph behind tensors of a payload, if there is one.

        Args:
            noted: Those that ask for gradients, each with its place in the payload.
            views: The place of what a tensor is a view of, by its own place.
        """
        outputs = [
            (place, tensor) for place, tensor in dict(noted).items()
            if tensor.grad_fn is not None and place not in views
        ]  # fmt: skip
        if not outputs:
            return None
        edges = [get_gradient_edge(tensor) for _, tensor in outputs]
        graph = _Graph(edges if _takes_edges() else [tensor for _, tensor in outputs])
        names = self._walk(graph, edges)
        if graph.runs_code:
            # A checkpoint may have captured what came with the call; nothing in the graph tells.
            for number, leaf in self._came:
                if leaf.requires_grad and (0, number) not in names:
                    names.append((0, number))
                    graph.sources.append(leaf)
        handle = self._objects.export(graph)
        for index, edge in enumerate(edges):
            self._borders.setdefault((edge.node, edge.output_nr), (-handle, index))
        return Graph(handle, [place for place, _ in outputs], names, list(views.items()))

    def unsend(self, graph: Graph) -> None:
        """Know that the parent was not told of a graph after all."""
        self._borders = {edge: border for edge, border in self._borders.items() if border[0] != -graph.handle}

    def settled(self) -> None:
        """Know that an exchange is over, with all that was asked within it."""
        self._borders.clear()
        self._came.clear()

    def entered(self) -> list[tuple[int, int, torch.Tensor]]:
        """Return the parent's tensors that are alive here, each as (0, its number, itself)."""
        alive = [(number, ours()) for ours, number, _ in list(self._numbers.values())]
        return [(0, number, tensor) for number, tensor in alive if tensor is not None and tensor.requires_grad]

    def _walk(self, graph: _Graph, edges: list[GradientEdge]) -> list[tuple[int, int]]:
        """Find what a graph leads back to, and return the names of that."""
        names: list[tuple[int, int]] = []
        # A node's Python object is the same only while somebody has it.
        seen: set[Any] = set()
        met: set[Any] = set()
        ahead: list[tuple[Any, int]] = [(edge.node, edge.output_nr) for edge in edges]
        while ahead:
            edge = ahead.pop()
            border = self._borders.get(edge)
            if border is not None:
                if edge not in met:
                    met.add(edge)
                    names.append(border)
                    graph.sources.append(GradientEdge(*edge))
                continue
            node = edge[0]
            if node in seen:
                continue
            seen.add(node)
            if isinstance(node, _Enter._backward_cls):
                names.append((0, int(node.number)))  # type: ignore[attr-defined]
                graph.entered.append(len(graph.sources))
                graph.sources.append(GradientEdge(*edge))
                continue
            following = node.next_functions
            if following:
                graph.claim(node)
                ahead.extend((function, place) for function, place in following if function is not None)
            elif hasattr(node, "variable"):
                name = self._name(node.variable)
                if name is None:
                    graph.hidden.append(node.variable)
                else:
                    names.append(name)
                    graph.sources.append(node.variable)
        return names

    def _name(self, leaf: torch.Tensor) -> tuple[int, int] | None:
        place = self._objects.trees.place_of(leaf)
        if place is not None:
            return place
        ours, number, _ = self._numbers.get(id(leaf), _UNKNOWN)
        return (0, number) if ours() is leaf else None


class _Graph:
    """One graph; the parent holds it as long as its own node lives.

    Args:
        outputs: Where they come from, or they themselves.

    Attributes:
        sources: What the parent can ask gradients of: leaves, and outputs of earlier graphs of the exchange,
            with which the parent's graph goes on, so that this one ends there.
        entered: Which of the sources are tensors that the parent has computed.
        hidden: Leaves that only the repository's code knows of.
        runs_code: Whether code of somebody's runs in a backward, which may have graphs of its own.
    """

    def __init__(self, outputs: list[Any]) -> None:
        self._outputs = outputs
        self.sources: list[torch.Tensor | GradientEdge] = []
        self.entered: list[int] = []
        self.hidden: list[torch.Tensor] = []
        self._is_kept = False
        self.runs_code = False

    def keep(self) -> None:
        """Stay as it is after each backward: another graph has a part of it."""
        self._is_kept = True

    def claim(self, node: Any) -> None:
        """Count a node in; where another graph has it as well, the first backward must leave it to the second."""
        metadata = node.metadata
        other = metadata[_GRAPH]() if _GRAPH in metadata else None
        if other is not None:
            other.keep()
            self.keep()
        metadata[_GRAPH] = weakref.ref(self)
        self.runs_code |= isinstance(node, BackwardCFunction)

    def backward(
        self,
        gradients: list[torch.Tensor | None],
        wanted: list[int],
        keep: bool,
        place: Callable[[torch.Tensor], torch.Tensor],
        known: Callable[[], list[tuple[int, int, torch.Tensor]]],
    ) -> tuple[list[Any], list[Any]]:
        """Return gradients.

        Args:
            gradients: That of each output; None where there is none.
            wanted: Of which of the sources.
            keep: Whether another backward will follow.
            place: Copies a tensor to where it can be sent from without another copy.
            known: Returns all leaves that the parent knows, as (handle, place, parameter) or (0, number, tensor).

        Returns:
            Those of the wanted sources, None for what nothing depends on; and, as (handle, place, gradient) or
            (0, number, gradient), those of leaves to which no path leads: they were used in a graph of their
            own, which a checkpoint made.
        """
        both = [(output, given) for output, given in zip(self._outputs, gradients, strict=True) if given is not None]
        if not both:
            return [None] * len(wanted), []
        outputs, given = zip(*both, strict=True)
        again = torch.is_grad_enabled()  # `create_graph=True` in the parent
        self._is_kept |= again
        keep = keep or self._is_kept
        borders = sum(isinstance(source, GradientEdge) for source in self.sources) - len(self.entered)
        if again or borders:
            return self._derive(outputs, given, wanted, keep, again), []
        begin = functools.partial(torch.autograd.backward, outputs, given, retain_graph=keep)
        return self._accumulate(begin, wanted, place, known() if self.runs_code else [])

    def _derive(self, outputs: Any, given: Any, wanted: list[int], keep: bool, again: bool) -> list[Any]:
        inputs: Any = [self.sources[index] for index in wanted] + self.hidden
        if not inputs:
            return []
        with contextlib.ExitStack() as hooks:
            for source in self.sources:
                if isinstance(source, GradientEdge):
                    hooks.callback(source.node.register_prehook(_cut_at(source.output_nr)).remove)
            found = torch.autograd.grad(
                outputs, inputs, given, retain_graph=keep, create_graph=again, allow_unused=True
            )
        for gradient in found[: len(wanted)]:
            _check(gradient)
        for leaf, gradient in zip(self.hidden, found[len(wanted) :], strict=True):
            if gradient is not None:
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return list(found[: len(wanted)])

    def _accumulate(
        self,
        begin: Callable[[], None],
        wanted: list[int],
        place: Callable[[torch.Tensor], torch.Tensor],
        known: list[tuple[int, int, torch.Tensor]],
    ) -> tuple[list[Any], list[Any]]:
        # Each gradient is copied as soon as it is there, so that never all of them are there twice.
        found: dict[int, torch.Tensor] = {}
        is_own: dict[int, bool] = {}

        def add(source: object, gradient: torch.Tensor | None) -> None:
            if gradient is not None:
                _check(gradient)
                if gradient.nbytes >= LARGE_BYTES:
                    give_back()  # what the one before took
                before = found.get(id(source))
                if before is None:
                    found[id(source)] = place(gradient)
                    is_own[id(source)] = found[id(source)] is not gradient
                elif is_own[id(source)]:
                    before.add_(gradient)
                else:  # it is the repository's code's or autograd's, of which others may have views
                    found[id(source)], is_own[id(source)] = before + gradient, True

        def take(leaf: torch.Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            add(leaf, gradient)

        leaves = [source for source in self.sources if isinstance(source, torch.Tensor)]
        with contextlib.ExitStack() as after:
            for leaf in [*leaves, *(leaf for *_, leaf in known)]:
                after.callback(setattr, leaf, "grad", leaf.grad)  # the repository's code may have one of its own
                leaf.grad = None
            for leaf in leaves:
                after.callback(leaf.register_post_accumulate_grad_hook(take).remove)  # type: ignore[no-untyped-call]
            for source in (self.sources[index] for index in self.entered):
                assert isinstance(source, GradientEdge), "they are entered by a node"
                # Not by a leaf, whose gradient torch lays out like the leaf; in process there is none.
                after.callback(source.node.register_prehook(functools.partial(_stop, add, source)).remove)
            begin()
            others = []
            for handle, index, leaf in known:
                if leaf.grad is not None:
                    _check(leaf.grad)
                    others.append((handle, index, place(leaf.grad)))
        return [found.get(id(self.sources[index])) for index in wanted], others


def _check(gradient: torch.Tensor | None) -> None:
    if gradient is not None and gradient.layout is not torch.strided:
        raise LocalProtocolError(
            f"a gradient of layout {gradient.layout} does not cross the border to a worker: where it is that of an "
            "embedding, make it with sparse=False"
        )


def _stop(
    add: Callable[[object, torch.Tensor | None], None], source: GradientEdge, gradients: tuple[torch.Tensor | None]
) -> Any:
    """Take the gradient that arrives at a node, and let none through."""
    add(source, gradients[0])
    return (None,)


def _cut_at(place: int) -> Callable[[tuple[torch.Tensor | None, ...]], Any]:
    """Return a hook that lets no gradient through of one output of a node."""
    return lambda gradients: tuple(None if index == place else one for index, one in enumerate(gradients))


@functools.cache
def _takes_edges() -> bool:
    """Return whether torch can begin a backward at an edge; older versions need the tensor itself."""
    leaf = torch.ones(1, requires_grad=True)
    with torch.enable_grad():
        edge = get_gradient_edge(leaf * 2)
    try:
        torch.autograd.backward((edge,), (torch.ones(1),))
    except (TypeError, AttributeError, RuntimeError):
        return False
    return True


class _Enter(torch.autograd.Function):
    """The identity, of another tensor object over the same memory."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, number: int) -> torch.Tensor:
        ctx.number = number
        ctx.set_materialize_grads(False)
        # Not a view in autograd's eyes: one of a leaf could not be written to either.
        offset = int(leaf.storage_offset()) * leaf.itemsize
        return tensor_over(leaf.untyped_storage(), leaf.dtype, offset, leaf.shape, leaf.stride())

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor | None) -> Any:
        return gradient, None
