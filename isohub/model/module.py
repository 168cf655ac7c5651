"""`IsolatedModule`: the `nn.Module` in this process whose forward runs in a worker."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from torch.fx.proxy import Proxy

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.model import casts, copies, recipe, state
from isohub.model.classes import class_of
from isohub.model.objects import Lease, ask, get_attribute, names_in
from isohub.model.scripts import is_script, look_again
from isohub.wire.specs import ModuleNode
from isohub.wire.texts import clean

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


_BREAKS_WITH_WORDS = torch.torch_version.TorchVersion(torch.__version__) >= "2.7"
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
        self._load_state_dict_post_hooks[recipe.OURS] = state.loaded  # type: ignore[index]

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        """What `isinstance` sees besides `type(self)`: the class of torch.nn that the worker's module is one of."""
        node = self._isohub_node
        return class_of(node.type_name, node.torch_type)

    @property
    def isohub(self) -> Info:
        """Where this module comes from, and how its worker is."""
        return self._isohub_tree.info()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the worker's module with these arguments and return what it returned.

        Tensors are copied once on the way there, and not at all on the way back.

        Raises:
            LocalProtocolError: An argument cannot cross, or torch.jit.trace or torch.fx is at work.
            BrokenWorkerError: The worker is dead, or dies meanwhile.
            Exception: What the repository's code raised.
        """
        if torch._C._get_tracing_state() is not None:
            raise LocalProtocolError(
                "torch.jit.trace cannot follow a module into its worker: "
                'isohub.load(..., returns="torchscript") gives one that has no worker'
            )
        if _is_for_fx(args, kwargs):
            raise LocalProtocolError(
                "torch.fx cannot follow a module into its worker: have it traced there, "
                "isohub.run_in(model, torch.fx.symbolic_trace), or ask for a module that has no worker, "
                'isohub.load(..., returns="export") or returns="torchscript"'
            )
        # torch.compile cannot look into another process: it leaves this as it is, and compiles what is around.
        if _BREAKS_WITH_WORDS and torch.compiler.is_dynamo_compiling():
            torch._dynamo.graph_break(
                msg="an isolated module runs in its worker, where torch.compile and torch.export cannot follow it: "
                "leave out fullgraph=True, compile it there, model.compile(), or take a program, "
                'isohub.load(..., returns="export")'
            )
        if "torch._dynamo" in sys.modules:
            _uncompiled.setdefault("ask", torch.compiler.disable(ask))  # type: ignore[no-untyped-call]
            return _uncompiled["ask"](self, "call", *args, kwargs=kwargs)
        return ask(self, "call", *args, kwargs=kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Have the worker's module compile itself, there; see `nn.Module.compile`.

        Raises:
            LocalProtocolError: An argument cannot cross.
        """
        ask(self, "apply", *args, name="compile", kwargs=kwargs)

    def __prepare_scriptable__(self) -> NoReturn:
        # What torch.jit.script asks each module for first, those inside of another one as well.
        raise LocalProtocolError(
            "torch.jit.script cannot follow a module into its worker: "
            'isohub.load(..., returns="torchscript") gives one that has no worker'
        )

    def __add__(self, other: Any) -> Any:
        return self._joined("__add__", other)

    def __iadd__(self, other: Any) -> Any:
        return self._joined("__iadd__", other)

    def _joined(self, operator: str, other: Any) -> Any:
        """Join containers as these do it themselves, in the worker."""
        if not hasattr(self.__class__, operator):
            return NotImplemented
        return ask(self, "method", other, name=operator)

    def train(self, mode: bool = True) -> IsolatedModule:
        """Switch between training and evaluation, here and in the worker, by the module's own `train`."""
        self._isohub_tree.take_modes(ask(self, "train", mode))
        return self

    def requires_grad_(self, requires_grad: bool = True) -> IsolatedModule:
        """Have all parameters ask for gradients, or none, here and in the worker."""
        return self._change("requires_grad_", requires_grad)

    def float(self) -> IsolatedModule:
        """Cast all floating point parameters and buffers to float32, here and in the worker."""
        casts.named_cast(self, "float", torch.float32)
        return self

    def double(self) -> IsolatedModule:
        """Cast all floating point parameters and buffers to float64, here and in the worker."""
        casts.named_cast(self, "double", torch.float64)
        return self

    def half(self) -> IsolatedModule:
        """Cast all floating point parameters and buffers to float16, here and in the worker."""
        casts.named_cast(self, "half", torch.float16)
        return self

    def bfloat16(self) -> IsolatedModule:
        """Cast all floating point parameters and buffers to bfloat16, here and in the worker."""
        casts.named_cast(self, "bfloat16", torch.bfloat16)
        return self

    def to(self, *args: Any, **kwargs: Any) -> IsolatedModule:
        """Cast and move as `nn.Module.to` does, here and in the worker.

        Raises:
            RuntimeError: The worker has no such device.
        """
        casts.to(self, args, kwargs)
        return self

    def cpu(self) -> IsolatedModule:
        """Move the module to the CPU, if it is on another device."""
        if any(tensor.is_meta for tensor in (*self.parameters(), *self.buffers())):
            casts.move(self, "cpu", torch.device("cpu"))
        return self

    def cuda(self, device: int | torch.device | None = None) -> IsolatedModule:
        """Move the module to a GPU, in the worker; calls take and return tensors on the CPU as before.

        Raises:
            RuntimeError: The worker has none.
        """
        where = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
        casts.move(self, "cuda", where, where)
        return self

    def to_empty(self, *, device: Any, recurse: bool = True) -> IsolatedModule:
        """Move the module to a device without its values, which are then whatever lies there.

        Raises:
            RuntimeError: The worker has no such device.
        """
        casts.to_empty(self, torch.device("cpu" if device is None else device), recurse=recurse)
        return self

    def share_memory(self) -> IsolatedModule:
        """Have the weights in memory that forks of this process share as well, and return the module.

        They are in shared memory in any case. Those that other workers have too are parted from them: else what a fork
        writes there would stay its own.
        """
        if self._isohub_lease.worker.alive:
            self._isohub_lease.worker.part_weights()
        return self

    def _change(self, method: str, *args: Any, **kwargs: Any) -> IsolatedModule:
        """Have the worker's module change itself, and take over what it is then."""
        ask(self, "apply", *args, name=method, kwargs=kwargs)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> IsolatedModule:
        casts.apply(self, fn, recurse=recurse)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict, over the shared memory; what the worker's classes do for one is done there."""
        return state.state_dict(self, args, kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict as the worker's module does, and return what that returns.

        Raises:
            RuntimeError: As torch raises it, where keys or shapes do not fit.
        """
        return state.load_state_dict(self, state_dict, args, kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        state.load_from_state_dict(self, *args)

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
        if is_script(self):
            look_again(self)
        recipe.note_attribute(self, name, value)

    register_forward_pre_hook = _registering("register_forward_pre_hook")
    register_forward_hook = _registering("register_forward_hook")
    register_full_backward_pre_hook = _registering("register_full_backward_pre_hook")
    register_full_backward_hook = _registering("register_full_backward_hook")
    register_backward_hook = _registering("register_backward_hook")

    def has_hooks(self) -> bool:
        """Return whether a hook is registered here, so that calls of this module have to come by."""
        return bool(self._forward_pre_hooks or self._forward_hooks or self._backward_hooks or self._backward_pre_hooks)

    def note_hooks(self) -> None:
        """Have the worker know of hooks that came by another way than being registered: with a copy, or a pickle."""
        if self.has_hooks():
            self._isohub_tree.hookable.add(self)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, here and in the worker; it stays the one that was given, in the worker's memory."""
        if sys._getframe(1).f_globals.get("__name__") == "torch.nn.utils.prune":
            raise _elsewhere(name)  # it would go on to take the old one out of `_parameters`
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
        names = set(object.__dir__(self)) | set(dir(type(self))) | {*self._parameters, *self._buffers, *self._modules}
        if self._isohub_lease.worker.alive:
            names.update(names_in(self._isohub_lease.worker, ask(self, "dir")))
        return sorted(names)

    def __repr__(self) -> str:
        node = self._isohub_node
        # Names of parts are the worker's words too, wherever torch puts them.
        text = clean(node.text if node.own_repr else super().__repr__())
        return text if self._isohub_path else f"{text}\n# {self._isohub_tree.describe()}"

    def _get_name(self) -> str:
        return clean(self._isohub_node.type_name.rpartition(".")[2], 500)

    def extra_repr(self) -> str:
        """Return what the worker's module says of itself."""
        return clean(self._isohub_node.text)

    def __copy__(self) -> Any:
        return copies.duplicate(self, None)

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        return copies.duplicate(self, memo)

    def __reduce_ex__(self, _: object) -> Any:
        return recipe.reduce_module(self)


def _is_for_fx(args: Any, kwargs: Any) -> bool:
    """Return whether these are what torch.fx traces with. For a root it has one proxy for all of `*args`."""
    if isinstance(args, Proxy) or isinstance(kwargs, Proxy):
        return True
    for value in args:  # for each call: `any` of a generator takes three times as long
        if isinstance(value, Proxy):
            return True
    return bool(kwargs) and any(isinstance(value, Proxy) for value in kwargs.values())


def _elsewhere(name: str) -> LocalProtocolError:
    return LocalProtocolError(
        f"{name} of an isolated module cannot be exchanged here, as torch.nn.utils does it: have the "
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
