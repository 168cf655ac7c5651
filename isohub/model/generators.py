"""Generators of random numbers among the arguments of a call: the worker draws from them, and they move on here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from isohub.errors import RemoteProtocolError
from isohub.shm.tensors import bytes_of
from isohub.supervisor.state import check_generator_state

__all__ = ["lent"]


@contextmanager
def lent(
    proxy: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any] | None]]:
    """Yield the arguments with generators of the worker's in the places of those here; these go on where it stopped.

    A copy alone would draw the same numbers at each call. Only generators of the CPU that are arguments themselves are
    lent, not those inside of others.

    Raises:
        RemoteProtocolError: What the worker says of a generator is no state of one; it was killed.
    """
    worker = proxy._isohub_lease.worker
    there: dict[int, tuple[torch.Generator, Any]] = {}  # what stands for one of the worker's

    def lend(value: Any) -> Any:
        if type(value) is not torch.Generator or value.device.type != "cpu":
            return value
        if id(value) not in there:
            there[id(value)] = value, _made(proxy, value)
        return there[id(value)][1]

    args = tuple(map(lend, args))
    kwargs = None if kwargs is None else {name: lend(value) for name, value in kwargs.items()}
    try:
        yield args, kwargs
    finally:
        for generator, lent_one in there.values():
            lease = lent_one._isohub_lease
            if not worker.alive or lease.table is not worker.border.proxies:
                continue  # it died with its worker, in whose place there may be another
            state = worker.request("method", (), None, of=lease, path="", name="get_state")
            try:
                _take_over(generator, _checked(state, generator))
            except RemoteProtocolError as fault:
                raise worker.refuse(fault) from fault


def _made(proxy: Any, generator: torch.Generator) -> Any:
    lease, path = proxy._isohub_lease, proxy._isohub_path
    made = lease.worker.request("state", (generator.get_state(),), None, of=lease, path=path, name="generator")
    if not hasattr(type(made), "_isohub_type"):
        raise lease.worker.refuse(RemoteProtocolError(f"a {type(made).__name__} where a generator is due"))
    return made


def _take_over(generator: torch.Generator, state: torch.Tensor) -> None:
    try:
        generator.set_state(state)
    except RuntimeError as error:
        raise RemoteProtocolError(f"a state of a generator that torch refuses: {error}") from None


def _checked(state: Any, generator: torch.Generator) -> torch.Tensor:
    known = generator.get_state()
    if (
        not isinstance(state, torch.Tensor)
        or not state.is_cpu
        or (state.dtype, state.shape) != (known.dtype, known.shape)
    ):
        raise RemoteProtocolError("a state of a generator that is none")
    taken = state.detach().contiguous().clone()  # what the worker writes from now on is not in it
    check_generator_state(bytes_of(taken))
    return taken
