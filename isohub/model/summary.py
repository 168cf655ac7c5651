"""What a load returned, in a few numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from isohub.model.module import IsolatedModule
from isohub.model.objects import RemoteObject

__all__ = ["Summary", "summarize"]


@dataclass(frozen=True)
class Summary:
    """What a load returned.

    Attributes:
        type: Name of its class, as the worker has it.
        parameters: How many numbers are in parameters of modules; None where there is no module.
        trainable: How many of these ask for gradients; None where there is no module.
        tensors: How many tensors there are: parameters, buffers, and those in plain data.
        dtypes: Their dtypes, the one with the most bytes first.
        weights_bytes: Their bytes.
    """

    type: str
    parameters: int | None
    trainable: int | None
    tensors: int
    dtypes: list[str]
    weights_bytes: int


def summarize(result: Any) -> Summary:
    """Look at what a load returned; tuples, lists and dicts are looked into."""
    parts = list(_parts(result))
    modules = [part for part in parts if isinstance(part, IsolatedModule)]
    # By identity: two modules of one tuple may share parameters.
    parameters = {id(tensor): tensor for module in modules for tensor in module.parameters()}
    buffers = {id(tensor): tensor for module in modules for tensor in module.buffers()}
    plain = {id(part): part for part in parts if isinstance(part, torch.Tensor)}
    every: dict[int, torch.Tensor] = {**parameters, **buffers, **plain}
    nbytes: Counter[str] = Counter()
    for tensor in every.values():
        nbytes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return Summary(
        type=_type_name(result),
        parameters=sum(tensor.numel() for tensor in parameters.values()) if modules else None,
        trainable=sum(tensor.numel() for tensor in parameters.values() if tensor.requires_grad) if modules else None,
        tensors=len(every),
        dtypes=[name for name, _ in nbytes.most_common()],
        weights_bytes=nbytes.total(),
    )


def _parts(value: Any) -> Iterator[IsolatedModule | torch.Tensor]:
    if isinstance(value, IsolatedModule | torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _parts(member)
    elif isinstance(value, dict):
        for member in value.values():
            yield from _parts(member)


def _type_name(value: Any) -> str:
    if isinstance(value, IsolatedModule):
        return value._isohub_node.type_name
    if isinstance(value, RemoteObject):
        return value._isohub_type
    return type(value).__qualname__
