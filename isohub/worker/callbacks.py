"""Modules with hooks in the parent: their calls go by way of there.

The parent calls its own mirror of the module, by torch's own rules: hooks before, the forward (which comes
back here as a request), hooks after. So every kind of hook works as in one process, and the graph of a
backward pass goes through the parent at these places.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

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
        self._under_way = threading.local()

    def accept(self, request: Request, descriptors: list[int]) -> None:
        """Take in what comes along with a request."""
        self._border.accept(request, descriptors)
        for change in request.changes:
            if change.hooked is not None:
                self._hook(change.handle, change.hooked)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """Call an object as the parent asked for: that has called the hooks of a module already."""
        detour = vars(target).get(_CALL) if isinstance(target, torch.nn.Module) else None
        if not isinstance(detour, _Detour):
            return target(*args, **kwargs)
        outer = self._outer()
        if not (outer and outer[-1].module is target):
            return detour.around(args, kwargs)
        with outer[-1].watching(args, kwargs):
            return detour.around(args, kwargs)

    def compile(self, module: torch.nn.Module, compile_it: Callable[[], object]) -> None:
        """Compile a module, whose hooks in the parent run as before."""
        detour = vars(module).get(_CALL)
        compile_it()
        if isinstance(detour, _Detour):
            detour.before = vars(module)[_CALL]
            vars(module)[_CALL] = detour

    def _outer(self) -> list[_Call]:
        """Return the calls that this thread has had the parent make, and that have not ended."""
        calls: list[_Call] = self._under_way.__dict__.setdefault("calls", [])
        return calls

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
        if self._border.nursery is not None:
            self._border.nursery.settle()
        payload = self._border.pack((args, kwargs), only_forward=True)
        callback = Callback(
            handle=place[0], path=place[1], payload=payload, state=self._modes.current(), **self._border.news()
        )
        call = _Call(module, args, kwargs)
        self._outer().append(call)
        try:
            reply, descriptors = self._call(callback)
        except BaseException:
            self._border.unsend(payload)
            raise
        finally:
            self._outer().remove(call)
        self.accept(reply, descriptors)
        call.write_back()
        if reply.state is not None:
            self._modes.take_generator(reply.state.rng)
        if reply.verb == "throw":
            raise ThrownError(reply.handle)
        ((value,), _) = self._border.unpack(reply.payload)
        return value


class _Call:
    """A call that the parent makes for the code here, and what its module wrote to in place.

    The module gets copies, so that the caller's tensors have to be written to afterwards, as in one process.

    Args:
        module: The module.
        args: The caller's.
        kwargs: The caller's.
    """

    def __init__(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        self.module = module
        self._given = _tensors_in(args, kwargs)
        self._written: list[tuple[torch.Tensor, torch.Tensor]] = []

    @contextmanager
    def watching(self, args: Any, kwargs: Any) -> Iterator[None]:
        """Note which of the caller's tensors are written to; a hook may have put others in their places."""
        copies = _tensors_in(args, kwargs)
        pairs = list(zip(self._given, copies, strict=True)) if len(self._given) == len(copies) else []
        pairs = [(given, copy) for given, copy in pairs if _is_same(given, copy)]
        before = [_version(copy) for _, copy in pairs]
        yield
        self._written += [
            (given, copy) for (given, copy), version in zip(pairs, before, strict=True)
            if _version(copy) != version or (version == _NONE and not _is_same(given, copy))
        ]  # fmt: skip

    def write_back(self) -> None:
        """Write to the caller's tensors what the module wrote to their copies."""
        for given, copy in self._written:
            given.copy_(copy)


_NONE = -1


def _version(tensor: torch.Tensor) -> int:
    return _NONE if tensor.is_inference() else tensor._version


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    if one.is_meta or one.layout is not torch.strided:
        return False
    with torch.no_grad():
        return bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124 - NaN


def _tensors_in(args: Any, kwargs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]


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
