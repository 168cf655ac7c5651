"""`IsolatedModule`: the `nn.Module` in this process whose forward runs in a worker."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.model.objects import Lease, ask, get_attribute
from isohub.wire.specs import ModuleNode

if TYPE_CHECKING:
    from isohub.model.tree import Tree

__all__ = ["Info", "IsolatedModule"]


@dataclass(frozen=True)
class Info:
    """Where an isolated module comes from: what `model.isohub` tells.

    Attributes:
        host: The host of the repository; empty for one on this machine.
        repo: `owner/name`, or the name of a working tree's folder.
        ref: The branch or tag that was taken; None for a working tree.
        commit: Its commit, 40 hexadecimal digits; None for a working tree.
        entrypoint: The entrypoint that returned it; None for a module that came by another way.
        pid: Process id of its worker.
        state: State of its worker: `"idle"`, `"busy"`, `"closed"` or `"broken"`.
    """

    host: str
    repo: str
    ref: str | None
    commit: str | None
    entrypoint: str | None
    pid: int
    state: str


_uncompiled: dict[str, Callable[..., Any]] = {}  # made when needed: it brings all of the compiler


def _registering(name: str) -> Any:
    """Return nn.Module's method of that name, which also tells the tree that the module may have hooks."""
    plain = getattr(nn.Module, name)

    @functools.wraps(plain)
    def register(self: IsolatedModule, *args: Any, **kwargs: Any) -> Any:
        self._isohub_tree.hookable.add(self)
        return plain(self, *args, **kwargs)

    return register


class IsolatedModule(nn.Module):
    """A module that lives in a worker, with its tree, parameters and buffers here as well.

    Parameters and buffers are the worker's own memory: what either side writes in place, the other sees at
    once. Calls, and whatever is not found here (methods, attributes), go to the worker's module.
    Sub-modules are `IsolatedModule`s and can be called on their own. It is made by `isohub.load`.

    Raises:
        BrokenWorkerError: The worker is dead. Weights and `state_dict()` go on working.
        LocalProtocolError: An argument cannot cross to the worker.

    Example:
        >>> model = isohub.load("git+file:///srv/models.git@v1", "resnet18")
        >>> model(torch.rand(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """

    _isohub_lease: Lease
    _isohub_path: str
    _isohub_tree: Tree
    _isohub_node: ModuleNode

    def __init__(self, tree: Tree, path: str, node: ModuleNode) -> None:
        super().__init__()
        here = self.__dict__
        here["_isohub_lease"] = tree.lease
        here["_isohub_tree"] = tree
        here["_isohub_path"] = path
        here["_isohub_node"] = node

    @property
    def isohub(self) -> Info:
        """Where this module comes from, and how its worker is."""
        return self._isohub_tree.info()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the worker's module with these arguments and return what it returned.

        Tensors are copied once on the way there, and not at all on the way back.

        Raises:
            LocalProtocolError: An argument cannot cross, or torch.jit.trace is at work.
            BrokenWorkerError: The worker is dead, or dies meanwhile.
            Exception: What the repository's code raised.
        """
        if torch._C._get_tracing_state() is not None:
            raise LocalProtocolError(
                "torch.jit.trace cannot follow a module into its worker: "
                'isohub.load(..., returns="torchscript") gives one that has no worker'
            )
        # torch.compile cannot look into another process: it leaves this as it is, and compiles what is around.
        if "torch._dynamo" in sys.modules:
            _uncompiled.setdefault("ask", torch.compiler.disable(ask))  # type: ignore[no-untyped-call]
            return _uncompiled["ask"](self, "call", *args, kwargs=kwargs)
        return ask(self, "call", *args, kwargs=kwargs)

    def train(self, mode: bool = True) -> IsolatedModule:
        """Switch between training and evaluation, here and in the worker, by the module's own `train`."""
        self._isohub_tree.take_modes(ask(self, "train", mode))
        return self

    def requires_grad_(self, requires_grad: bool = True) -> IsolatedModule:
        """Have all parameters ask for gradients, or none, here and in the worker."""
        return self._change("requires_grad_", requires_grad)

    def float(self) -> IsolatedModule:
        """Cast all floating point parameters and buffers to float32, here and in the worker."""
        return self._cast("float", torch.float32)

    def double(self) -> IsolatedModule:
        """Cast all floating point parameters and buffers to float64, here and in the worker."""
        return self._cast("double", torch.float64)

    def half(self) -> IsolatedModule:
        """Cast all floating point parameters and buffers to float16, here and in the worker."""
        return self._cast("half", torch.float16)

    def bfloat16(self) -> IsolatedModule:
        """Cast all floating point parameters and buffers to bfloat16, here and in the worker."""
        return self._cast("bfloat16", torch.bfloat16)

    def to(self, *args: Any, **kwargs: Any) -> IsolatedModule:
        """Cast as `nn.Module.to` does, here and in the worker; the device can only be the CPU.

        Raises:
            LocalProtocolError: Another device was asked for.
        """
        parsed: tuple[Any, ...] = torch._C._nn._parse_to(*args, **kwargs)
        device, dtype, _, memory_format = parsed
        if device is not None and device.type != "cpu":
            raise LocalProtocolError(
                f"an isolated module stays on the CPU, where its worker has it: .to({str(device)!r}) is not there "
                "yet. Use isolate=False for a module on another device"
            )
        if memory_format is not None:
            return self._change("to", dtype=dtype, memory_format=memory_format)
        cast = [tensor for tensor in self._tensors() if tensor.is_floating_point() or tensor.is_complex()]
        if dtype is None or all(tensor.dtype is dtype for tensor in cast):
            return self
        return self._change("to", dtype)

    def share_memory(self) -> IsolatedModule:
        """Return the module as it is: its memory is shared already."""
        return self

    def _cast(self, method: str, dtype: torch.dtype) -> IsolatedModule:
        # Complex tensors stay as they are, unlike in `to`.
        if all(tensor.dtype is dtype for tensor in self._tensors() if tensor.is_floating_point()):
            return self
        return self._change(method)

    def _tensors(self, recurse: bool = True) -> list[torch.Tensor]:
        return [*self.parameters(recurse), *self.buffers(recurse)]

    def _change(self, method: str, *args: Any, **kwargs: Any) -> IsolatedModule:
        """Have the worker's module change itself, and take over what it is then."""
        ask(self, "apply", *args, name=method, kwargs=kwargs)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> IsolatedModule:
        # Everything else that replaces tensors (cuda, to_empty, ...) ends up here. On this side alone it would
        # silently part the module from its worker, so it is tried on others first: some functions give
        # another memory to the very tensor that they return.
        tensors = self._tensors(recurse)
        with torch.no_grad():
            if any(_replaces(fn, torch.zeros_like(tensor)) for tensor in tensors):
                raise LocalProtocolError(
                    "this would replace the parameters here and leave the worker's as they are; .to(dtype), "
                    ".half() and their like do both. Use isolate=False for a module on another device"
                )
            for tensor in tensors:
                fn(tensor)
        return self

    def __getattr__(self, name: str) -> Any:
        here = self.__dict__
        for registered in ("_parameters", "_buffers", "_modules"):
            if registered in here and name in here[registered]:
                return here[registered][name]
        if (name.startswith("__") and name.endswith("__")) or "_isohub_lease" not in here:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return get_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__") and name.endswith("__"):
            raise _elsewhere(name)
        if name == "training":
            ask(self, "setattr", bool(value), name=name)
        if name in self.__dict__:
            object.__setattr__(self, name, value)
            return
        for registered in (self._parameters, self._buffers, self._modules):
            if name in registered and registered[name] is value:
                return  # the end of `model.weight -= step`, which wrote in place
        # The worker says what has become of the module, and its own rules refuse what makes no sense.
        ask(self, "setattr", value, name=name)

    register_forward_pre_hook = _registering("register_forward_pre_hook")
    register_forward_hook = _registering("register_forward_hook")
    register_full_backward_pre_hook = _registering("register_full_backward_pre_hook")
    register_full_backward_hook = _registering("register_full_backward_hook")
    register_backward_hook = _registering("register_backward_hook")

    def has_hooks(self) -> bool:
        """Return whether a hook is registered here, so that calls of this module have to come by."""
        return bool(self._forward_pre_hooks or self._forward_hooks or self._backward_hooks or self._backward_pre_hooks)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, here and in the worker; it stays the one that was given, in the worker's memory."""
        ask(self, "method", name, param, name="register_parameter")

    def register_buffer(self, name: str, tensor: torch.Tensor | None, persistent: bool = True) -> None:
        """Add a buffer, here and in the worker."""
        ask(self, "method", name, tensor, persistent, name="register_buffer")

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module, here and in the worker.

        Its parameters stay the ones that they are, in the worker's memory; the module in this place is
        an `IsolatedModule`, as all others are.

        Raises:
            LocalProtocolError: It cannot be pickled for the worker, or lives in another one.
        """
        ask(self, "method", name, module, name="add_module")

    register_module = add_module

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            object.__delattr__(self, name)
            return
        if sys._getframe(1).f_globals.get("__name__") == "torch.nn.utils.parametrize":
            raise _elsewhere(name)  # it would go on to set `__class__`; now nothing is lost yet
        ask(self, "delattr", name=name)

    def __dir__(self) -> list[str]:
        names = set(object.__dir__(self)) | {*self._parameters, *self._buffers, *self._modules}
        if self._isohub_lease.worker.alive:
            names.update(ask(self, "dir"))
        return sorted(names)

    def __repr__(self) -> str:
        node = self._isohub_node
        text = node.text if node.own_repr else super().__repr__()
        return text if self._isohub_path else f"{text}\n# {self._isohub_tree.describe()}"

    def _get_name(self) -> str:
        return self._isohub_node.type_name.rpartition(".")[2]

    def extra_repr(self) -> str:
        """Return what the worker's module says of itself."""
        return self._isohub_node.text

    def __deepcopy__(self, _: object) -> Any:
        raise self._uncopied()

    def __reduce_ex__(self, _: object) -> Any:
        raise self._uncopied()

    def _uncopied(self) -> LocalProtocolError:
        return LocalProtocolError(
            f"an isolated module ({self._isohub_tree.describe()}) cannot be copied or pickled yet, since it lives in "
            "a worker: load it again and use load_state_dict(model.state_dict())"
        )


def _replaces(fn: Any, tensor: torch.Tensor) -> bool:
    """Return whether `fn` makes another tensor of `tensor`, or gives it another memory."""
    before = (tensor.device, tensor.dtype, tensor.data_ptr())
    changed = fn(tensor)
    return (changed.device, changed.dtype, changed.data_ptr()) != before


def _elsewhere(name: str) -> LocalProtocolError:
    return LocalProtocolError(
        f"{name} of an isolated module cannot be exchanged here, as torch.nn.utils.parametrize does: have the "
        "function run on the worker's own module, isohub.run_in(module, function, ...)",
        where=name,
    )


def check_modes(value: object, count: int) -> list[bool]:
    """Return the modes that a worker told for `count` modules.

    Raises:
        RemoteProtocolError: They are no modes, or not as many.
    """
    if not isinstance(value, list) or len(value) != count or not all(type(mode) is bool for mode in value):
        raise RemoteProtocolError("modes of a module tree that do not fit it")
    return value
