"""The verbs: what each request does in the worker."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from isohub.wire.messages import Payload, Request
from isohub.worker import artifacts, devices, export, state
from isohub.worker.births import born_in
from isohub.worker.border import Border
from isohub.worker.callbacks import Callbacks
from isohub.worker.hubconf import Hubconf
from isohub.worker.savers import Savers

__all__ = ["Executor"]

_LARGE_BYTES = 1 << 20


class Executor:
    """Does requests.

    Args:
        hubconf: The repository's.
        border: Values in and out.
        callbacks: The modules that have hooks in the parent.
    """

    def __init__(self, hubconf: Hubconf, border: Border, callbacks: Callbacks) -> None:
        self._hubconf = hubconf
        self._border = border
        self._callbacks = callbacks
        self._savers = Savers()
        self._savers.take_over()
        self.result: Any = None  # of the last call, if it is large, until it is sent: to free it takes milliseconds
        self.took: list[tuple[Any, float]] = []  # by the parts of the last build; see `wire.messages.Returned`

    def execute(self, request: Request) -> Payload:
        """Do what the request says and return its result.

        Raises:
            BaseException: Whatever the repository's code raises.
        """
        special = getattr(self, f"_{request.verb}", None)
        if special is not None:
            return special(request)  # type: ignore[no-any-return]
        target = self._target(request)
        args, kwargs = self._border.unpack(request.payload)
        args, kwargs = devices.to_device_of(target, (args, kwargs))
        result = _OPERATIONS[request.verb](target, *args, **kwargs)
        return self._border.pack(devices.to_cpu(result))

    def _target(self, request: Request) -> Any:
        return self._border.objects.get(request.handle, request.path)

    def _call(self, request: Request) -> Payload:
        target = self._target(request)
        args, kwargs = self._border.unpack(request.payload)
        args, kwargs = devices.to_device_of(target, (args, kwargs))
        result = devices.to_cpu(self._callbacks.call(target, *args, **kwargs))
        payload = self._border.pack(result, only_forward=isinstance(target, torch.nn.Module))
        # One with a form is of plain tensors.
        if payload.form and sum(block.nbytes for block in payload.blocks) >= _LARGE_BYTES:
            self.result = None if self._border.has_input(result) else result
        return payload

    def _list(self, _: Request) -> Payload:
        return self._border.pack(self._hubconf.list())

    def _help(self, request: Request) -> Payload:
        return self._border.pack(self._hubconf.find(request.name).__doc__)

    def _build(self, request: Request) -> Payload:
        begun = time.monotonic()
        entry = self._hubconf.find(request.name)
        found = time.monotonic()
        args, kwargs = self._border.unpack(request.payload)
        example: Any = None
        if request.returns in ("torchscript", "export"):
            args, kwargs, example = args
        with self._border.building() as nursery:
            # A frozen result lies in memory of its own, and would be copied once more.
            birth = contextlib.nullcontext() if self._border.frozen else born_in(nursery)
            with self._savers.building(request.metadata), birth:
                result = entry(*args, **kwargs)
            nursery.settle()
            made = time.monotonic()
            if request.returns == "state_dict":
                result = _state_dict(result, request.name)
            if request.returns in ("torchscript", "export"):
                result = artifacts.take_apart(request.returns, result, example, request.name, self._border.move)
            payload = self._border.pack(result, moving=True)
        done = time.monotonic()
        self.took = [("hubconf", found - begun), ("entrypoint", made - found), ("export", done - made)]
        return payload

    def _method(self, request: Request) -> Payload:
        target = self._target(request)
        args, kwargs = self._border.unpack(request.payload)
        args, kwargs = devices.to_device_of(target, (args, kwargs))
        return self._border.pack(devices.to_cpu(getattr(target, request.name)(*args, **kwargs)))

    def _getattr(self, request: Request) -> Payload:
        target = self._target(request)
        value = getattr(target, request.name)
        if getattr(value, "__self__", None) is target and getattr(value, "__name__", "") == request.name:
            # Bound again at each look, so it needs no handle: the parent calls it by name.
            return self._border.method(request.handle, request.path, request.name)
        return self._border.pack(value)

    def _setattr(self, request: Request) -> Payload:
        ((value,), _) = self._border.unpack(request.payload)
        setattr(self._target(request), request.name, value)
        return self._border.pack(None)

    def _delattr(self, request: Request) -> Payload:
        delattr(self._target(request), request.name)
        return self._border.pack(None)

    def _apply(self, request: Request) -> Payload:
        """Change a module by one of its own methods, and describe its tree as it is then."""
        args, kwargs = self._border.unpack(request.payload)
        target = self._target(request)
        change = functools.partial(getattr(target, request.name), *args, **kwargs)
        if request.name == "compile":
            self._callbacks.compile(target, change)
        else:
            change()
        return self._border.describe(request.handle)

    def _train(self, request: Request) -> Payload:
        """Switch the mode of a module, and tell that of every module of the tree, in order."""
        ((mode,), _) = self._border.unpack(request.payload)
        self._target(request).train(mode)
        objects = self._border.objects
        objects.trees.modes_told(request.handle)
        return self._border.pack([module.training for module in export.in_order(objects.get(request.handle))])

    def _state(self, request: Request) -> Payload:
        """Load, save, copy, cast or move a module; see `worker.state`."""
        return state.do(self._border, request)

    def _describe(self, request: Request) -> Payload:
        return self._border.describe(request.handle)

    def _backward(self, request: Request) -> Payload:
        """Compute gradients by a graph that is here."""
        args, _ = self._border.unpack(request.payload)
        with self._border.placing() as place:
            found = self._target(request).backward(*args, place, self._border.leaves)
            payload = self._border.pack(found, only_forward=True)
        if payload.graph is not None:
            self._border.objects.get(payload.graph.handle).keep()
        return payload

    def _run(self, request: Request) -> Payload:
        """Call a function of the user's with the object."""
        (function, *args), kwargs = self._border.unpack(request.payload)
        return self._border.pack(function(self._target(request), *args, **kwargs))

    def _release(self, _: Request) -> Payload:
        return Payload()  # the releases themselves come along with every request

    _close = _release


def _state_dict(result: Any, entrypoint: str) -> Any:
    if isinstance(result, dict) and all(isinstance(value, torch.Tensor) for value in result.values()):
        return result
    state_dict = getattr(result, "state_dict", None)
    if not callable(state_dict):
        raise TypeError(
            f'{entrypoint} returned a {type(result).__name__}, which has no state_dict(): returns="state_dict" '
            "needs a module, or a dict of tensors"
        )
    return state_dict()


def _next(target: Any) -> tuple[bool, Any]:
    # Not by a loop: that would ask for an iterator at each step, and some start anew when asked.
    try:
        return True, next(target)
    except StopIteration:
        return False, None


def _exit(target: Any, error: BaseException | None) -> bool:
    if error is None:
        return bool(type(target).__exit__(target, None, None, None))
    return bool(type(target).__exit__(target, type(error), error, error.__traceback__))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "dir": dir,
    "len": len,
    "iter": iter,
    "next": _next,
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "delitem": lambda target, key: target.__delitem__(key),
    "contains": lambda target, key: key in target,
    "enter": lambda target: type(target).__enter__(target),
    "exit": _exit,
    "bool": bool,
    "eq": lambda target, other: bool(target == other),
    "hash": hash,
    "str": str,
    "repr": repr,
}
