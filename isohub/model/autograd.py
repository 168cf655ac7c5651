"""The part of an autograd graph that is in a worker, as one node of the graph here."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.model.objects import Lease, judged
from isohub.shm.tensors import TensorReader
from isohub.wire.messages import Graph, Numbered

__all__ = ["Numbers", "RemoteGraph"]

# Whether the backward pass that is under way was asked to keep the graph for another one. torch before 2.6
# does not tell; there it is always kept, until the last output of the call dies.
_keeps_graph: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class Numbers:
    """The numbers of tensors that were sent to one worker, so that it can name them."""

    def __init__(self) -> None:
        self._next = 1
        self._tensors: dict[int, weakref.ref[torch.Tensor]] = {}
        self._by_id: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []

    def settled(self) -> None:
        """Keep what was sent no longer: a result may have depended on what a hook returned and nobody holds."""
        self._kept.clear()

    def number(self, noted: list[tuple[int, torch.Tensor]]) -> list[Numbered]:
        """Number tensors of a payload, each given with its place there."""
        if torch.is_inference_mode_enabled():
            return []
        return [Numbered(place, self._number(tensor), _kind(tensor)) for place, tensor in dict(noted).items()]

    def get(self, number: int) -> torch.Tensor | None:
        """Return the tensor of that number, None if it is gone.

        Raises:
            RemoteProtocolError: There never was such a number.
        """
        if not 0 < number < self._next:
            raise RemoteProtocolError(f"a tensor numbered {number}, which was never sent")
        found = self._tensors.get(number)
        return None if found is None else found()

    def _number(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        number = self._by_id.get(id(tensor), 0)
        if number and self.get(number) is tensor:
            return number
        number, self._next = self._next, self._next + 1
        tensors, by_id, key = self._tensors, self._by_id, id(tensor)

        def died(_: object) -> None:
            tensors.pop(number, None)
            if by_id.get(key) == number:
                del by_id[key]

        tensors[number] = weakref.ref(tensor, died)
        by_id[key] = number
        return number


def _kind(tensor: torch.Tensor) -> Any:
    if isinstance(tensor, torch.nn.Parameter):
        return "parameter"
    return "leaf" if tensor.is_leaf else "computed"


class RemoteGraph:
    """One graph in a worker, for as long as a tensor here came from it.

    Args:
        lease: Of the worker's handle.
        leaf: Returns the tensor that the worker names (handle of a tree, place in it) or (0, number).
        leaves: What it leads back to: (position in the worker's list, tensor here).
        lost: Whether it leads back to tensors that are gone.
    """

    def __init__(
        self,
        lease: Lease,
        leaf: Callable[[int, int], torch.Tensor | None],
        leaves: list[tuple[int, torch.Tensor]],
        lost: bool,
    ) -> None:
        self._lease = lease
        self._leaf = leaf
        self._positions = [position for position, _ in leaves]
        self._shapes = [(leaf.shape, leaf.dtype) for _, leaf in leaves]
        self._lost = lost
        self.given: tuple[torch.Tensor | None, ...] = ()  # to the backward that made this graph: kept, as by torch

    def join(self, graph: Graph, leaves: list[torch.Tensor], tensors: TensorReader) -> None:
        """Make the outputs of `graph` ones that were computed from `leaves`."""

        def make() -> list[torch.Tensor]:
            return [tensors[place] for place in graph.outputs]

        # Also in a worker's `enable_grad` under the caller's `no_grad`.
        with torch.enable_grad():
            # Whatever the worker computed from leaves of its own alone asks for gradients, too.
            anchor = torch.empty(0, requires_grad=True)
            outputs = _Computed.apply(self, make, anchor, *leaves)  # type: ignore[no-untyped-call]
            for place, output in zip(graph.outputs, outputs, strict=True):
                tensors.put(place, output)
            for place, of in graph.views:
                view = tensors.spec(place)
                tensors.put(place, tensors[of].as_strided(view.shape, view.stride, view.offset // tensors[of].itemsize))

    def backward(self, gradients: tuple[torch.Tensor | None, ...], needed: tuple[bool, ...]) -> list[Any]:
        """Return the gradients of the leaves; None where none is needed, or nothing depends on it.

        Raises:
            LocalProtocolError: An input of an earlier call is gone.
            RemoteProtocolError: The worker's answer makes no sense.
        """
        if self._lost:
            raise LocalProtocolError(
                "the result depends on a tensor that an earlier call was given and that this program has let go of "
                "since: hold on to the inputs of the calls that a backward goes through, or detach the module's state"
            )
        wanted = [index for index, need in enumerate(needed) if need]
        positions = [self._positions[index] for index in wanted]
        lease = self._lease
        answer = lease.worker.request("backward", (list(gradients), positions, _keeps_graph()), of=lease)
        with judged(lease.worker):
            return self._gradients(answer, wanted, len(needed))

    def _gradients(self, answer: object, wanted: list[int], count: int) -> list[Any]:
        match answer:
            case (list(found), list(others)) if len(found) == len(wanted):
                self._add(others)
            case _:
                raise RemoteProtocolError("not as many gradients as were asked for")
        result: list[torch.Tensor | None] = [None] * count
        for index, gradient in zip(wanted, found, strict=True):
            result[index] = None if gradient is None else _checked(gradient, *self._shapes[index])
        return result

    def _add(self, others: list[Any]) -> None:
        """Add gradients of leaves to which no path of the graph leads: reentrant checkpoints have their own."""
        for other in others:
            match other:
                case (int(handle), int(place), gradient):
                    leaf = self._leaf(handle, place)
                case _:
                    raise RemoteProtocolError("a gradient of nothing")
            if leaf is None or not leaf.requires_grad:
                continue
            _checked(gradient, leaf.shape, leaf.dtype)
            if leaf.is_leaf and not (leaf._backward_hooks or leaf._post_accumulate_grad_hooks):
                with torch.no_grad():  # as torch does, but without the copy that it makes of what others hold as well
                    leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
            else:
                torch.autograd.backward(leaf, gradient)


class _Computed(torch.autograd.Function):
    """The worker's part of the graph: outputs from leaves."""

    @staticmethod
    def forward(ctx: Any, graph: RemoteGraph, make: Callable[[], list[torch.Tensor]], *_: Any) -> Any:
        ctx.graph = graph
        ctx.set_materialize_grads(False)
        return tuple(make())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        found = ctx.graph.backward(gradients, ctx.needs_input_grad[3:])
        if torch.is_grad_enabled():  # a derivative of these may be asked for, which goes back to what was given
            for node in {one.grad_fn for one in found if one is not None}:
                if isinstance(node, _Computed._backward_cls):
                    cast("Any", node).graph.given = gradients
        return None, None, None, *found


def _checked(gradient: Any, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    if not isinstance(gradient, torch.Tensor) or (gradient.shape, gradient.dtype) != (shape, dtype) or gradient.is_meta:
        raise RemoteProtocolError("a gradient that is not of its tensor's shape and dtype")
    return gradient
