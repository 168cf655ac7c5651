"""Modules with hooks in the parent: their calls go by way of there.

The parent calls its own mirror of the module, by torch's own rules: hooks before, the forward (which comes
back here as a request), hooks after. So every kind of hook works as in one process, and the graph of a
backward pass goes through the parent at these places.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from isohub.wire.messages import Callback, Request
from isohub.worker.border import Border
from isohub.worker.modes import Modes

__all__ = ["Callbacks", "ThrownError"]

# Where `Module.compile` puts what is to be called in place of the module's own call. Copies do not take it along.
_CALL = "_compiled_call_impl"


class ThrownError(Exception):
    """What a hook raised in the parent, on its way through the repository's code.

    Attributes:
        number: By which the parent knows it.
    """

    def __init__(self, number: int) -> None:
        super().__init__("raised by a hook in the calling program")
        self.number = number


class Callbacks:
    """The modules of this worker that have hooks in the parent.

    Args:
        border: Values in and out.
        modes: Torch's.
        call: Has the parent make a call; returns its last request, with descriptors.
    """

    def __init__(self, border: Border, modes: Modes, call: Callable[[Callback], tuple[Request, list[int]]]) -> None:
        self._border = border
        self._modes = modes
        self._call = call
        self._hooked: dict[int, list[weakref.ref[torch.nn.Module]]] = {}  # by handle of the tree

    def accept(self, request: Request, descriptors: list[int]) -> None:
        """Take in what comes along with a request."""
        self._border.accept(request, descriptors)
        for change in request.changes:
            if change.hooked is not None:
                self._hook(change.handle, change.hooked)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """Call an object as the parent asked for: that has called the hooks of a module already."""
        detour = vars(target).get(_CALL) if isinstance(target, torch.nn.Module) else None
        return detour.around(args, kwargs) if isinstance(detour, _Detour) else target(*args, **kwargs)

    def _hook(self, handle: int, paths: list[str]) -> None:
        for module in filter(None, [known() for known in self._hooked.pop(handle, [])]):
            detour = vars(module).get(_CALL)
            if isinstance(detour, _Detour):
                vars(module)[_CALL] = detour.before
        modules = [self._border.objects.get(handle, path) for path in paths]
        for module in modules:
            vars(module)[_CALL] = _Detour(module, self._by_parent)
        if modules:
            self._hooked[handle] = [weakref.ref(module) for module in modules]

    def _by_parent(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        place = self._border.objects.find(module)
        if place is None:
            return _plain_call(module)(*args, **kwargs)  # the parent has let go of it
        payload = self._border.pack((args, kwargs), only_forward=True)
        callback = Callback(
            handle=place[0], path=place[1], payload=payload, state=self._modes.current(), **self._border.news()
        )
        reply, descriptors = self._call(callback)
        self.accept(reply, descriptors)
        if reply.state is not None:
            self._modes.take_generator(reply.state.rng)
        if reply.verb == "throw":
            raise ThrownError(reply.handle)
        ((value,), _) = self._border.unpack(reply.payload)
        return value


class _Detour:
    """Stands for the call of one module."""

    def __init__(self, module: torch.nn.Module, by_parent: Callable[[torch.nn.Module, Any, Any], Any]) -> None:
        self._module = weakref.ref(module)
        self._by_parent = by_parent
        self.before = vars(module).get(_CALL)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        assert module is not None, "it is being called"
        return self._by_parent(module, args, kwargs)

    def around(self, args: Any, kwargs: Any) -> Any:
        """Call the module itself."""
        module = self._module()
        assert module is not None, "the caller has it"
        return (self.before or _plain_call(module))(*args, **kwargs)


def _plain_call(module: torch.nn.Module) -> Callable[..., Any]:
    return module._call_impl
