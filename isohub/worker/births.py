"""Large tensors that are born in shared memory while an entrypoint runs, so that nobody has to move them there.

Layers make their weights by a few functions, `torch.empty` first of all, and fill them in place afterwards. Called
for a large tensor on the CPU, these give one of the same shape, dtype and values over memory of a nursery, and draw
the same random numbers. Whatever is not quite plain is left to torch: an inference tensor, one on another device or
in another layout, all that is traced, faked or compiled.

Such a tensor differs from one of torch's own in one thing: torch cannot resize its storage. A tensor that is to be
resized is put into private memory first; of `untyped_storage().resize_()` nobody hears, and it fails.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from isohub.shm.copying import copy_bytes
from isohub.shm.tensors import name_of_dtype, storage_over, tensor_over
from isohub.worker import weights
from isohub.worker.nursery import Nursery

__all__ = ["LEAST_BYTES", "born_in"]

# To make a smaller one takes about as long as to move it later.
LEAST_BYTES = 256 << 10
_LARGEST_ITEM_BYTES = 16
_KINDS = (torch.Tensor, torch.nn.Parameter)

_overrides: Any = torch.overrides  # parts of which have no types
_Fill = Callable[[torch.Tensor, tuple[Any, ...], dict[str, Any]], object]


@contextlib.contextmanager
def born_in(nursery: Nursery) -> Iterator[None]:
    """Have large tensors that this thread makes in the body lie in memory of `nursery`.

    It ends with the first call of a module: while a mode is on, torch takes another way through attention, with other
    last bits. Models are made before they are called.

    Args:
        nursery: The memory.
    """
    mode = _Births(nursery)
    thread = threading.get_ident()

    def leave(*_: object) -> None:
        if torch.compiler.is_compiling() or threading.get_ident() != thread:
            return
        if _overrides._get_current_function_mode() is mode:
            _overrides._pop_mode()
            hook.remove()
        # Else the repository has a mode of its own on, and torch takes that other way anyhow.

    # The caller of a compiled module is told of hooks like this one, which would be none of its own.
    warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)` when there are global hooks")
    hook = register_module_forward_pre_hook(leave)
    _overrides._push_mode(mode)
    try:
        yield
    finally:
        hook.remove()
        _take_out(mode)


class _Births(TorchFunctionMode):
    """Sees every call of torch's functions in one thread."""

    def __init__(self, nursery: Nursery) -> None:
        super().__init__()
        self._nursery = nursery
        self._born = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        own = _OWN.get(func)
        if own is not None:
            result = own(self, func, args, kwargs)
            if result is not None:
                return result
        if "out" in kwargs:
            self._make_resizable(tree_leaves(kwargs["out"]))
        return func(*args, **kwargs)

    def made(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Return what a function that makes tensors of a given size would return; None to leave it to torch."""
        if not kwargs.keys() <= _KNOWN or not _is_ordinary_moment():
            return None
        rest: tuple[Any, ...] = ()
        size: Any = kwargs.get("size", args)
        if func is torch.full:
            size, rest = (args[0], args[1:]) if args else (size, ())
        elif len(args) == 1 and isinstance(args[0], tuple | list):
            size = args[0]
        if not (isinstance(size, tuple | list) and all(type(one) is int for one in size)) or not _is_large(size):
            return None
        others = {name: value for name, value in kwargs.items() if name != "size"}
        try:
            # torch says what the dtype and the device are, whatever decides it; for no elements it draws no numbers.
            like = func((0,), *rest, **others)
        except Exception:  # noqa: BLE001 - the call itself says what is wrong
            return None
        tensor = self._like(like, size)
        if tensor is not None:
            _FILLS[func](tensor, rest, others)
            # As if nothing had been written to it yet.
            tensor = tensor.data.requires_grad_(like.requires_grad)
        return tensor

    def copied(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Return what a method that copies, or casts, a tensor would return; None to leave it to torch."""
        if not args or type(args[0]) not in _KINDS or not kwargs.keys() <= _KNOWN | {"memory_format"}:
            return None
        source, rest = args[0], args[1:]
        if (
            not _is_plain(source)
            or not _is_large(source.shape)
            or not _is_ordinary_moment()
            # Along an axis of one element a contiguous one may have any stride, by which torch chooses a memory format.
            or list(source.stride()) != _strides_of(source.shape)
            or kwargs.get("memory_format") not in (None, torch.preserve_format, torch.contiguous_format)
            or (source.requires_grad and torch.is_grad_enabled())
        ):
            return None
        try:
            like = func(torch.empty(0, dtype=source.dtype, device="cpu"), *rest, **kwargs)
        except Exception:  # noqa: BLE001 - as above
            return None
        if func is not torch.Tensor.clone and like.dtype is source.dtype:
            return None  # maybe no copy at all
        tensor = self._like(like, source.shape)
        return None if tensor is None else tensor.copy_(source.detach()).data

    def filled(self, _: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Copy to a tensor that was born here, as `copy_` does, and return it; None to leave it to torch."""
        if not self._born or kwargs or len(args) != 2 or not _are_alike(*args) or not _is_ordinary_moment():
            return None
        target, source = args
        nbytes = target.numel() * target.itemsize
        if not self._nursery.fill(target.data_ptr(), source.data_ptr(), nbytes):
            return None
        torch.autograd.graph.increment_version(target)
        return target  # type: ignore[no-any-return]

    def resized(self, _: Callable[..., Any], args: tuple[Any, ...], __: dict[str, Any]) -> None:
        """Let torch resize a tensor that was born here."""
        self._make_resizable(args[:1])

    def _make_resizable(self, tensors: Sequence[Any]) -> None:
        """Put private storages under those tensors that were born here; all else that looks there goes along.

        Beforehand: when torch finds that it cannot resize a storage, it has changed the shape already.
        """
        if not self._born:
            return
        plain = [one for one in tensors if type(one) in _KINDS and _is_plain(one)]
        born = [tensor for tensor in plain if self._nursery.has(tensor.data_ptr())]
        storages: dict[int, torch.UntypedStorage] = {}
        with torch._C.DisableTorchFunction():
            for old in [tensor.untyped_storage() for tensor in born]:
                new = storages[old.data_ptr()] = torch.UntypedStorage(  # type: ignore[no-untyped-call]
                    old.nbytes(), device="cpu"
                )
                copy_bytes(new.data_ptr(), old.data_ptr(), old.nbytes())
            weights.repoint(born, storages)

    def _like(self, like: Any, size: Any) -> torch.Tensor | None:
        """Return a tensor of that size, all zeros, like one without elements; None if there is no memory for it."""
        if type(like) is not torch.Tensor or not _is_plain(like):
            return None
        nbytes = math.prod(size) * like.itemsize
        view = self._nursery.allocate(nbytes) if nbytes >= LEAST_BYTES else None
        if view is None:
            return None
        self._born = True
        with torch._C.DisableTorchFunction():
            return tensor_over(storage_over(view), like.dtype, 0, size, _strides_of(size)).data


def _strides_of(size: Any) -> list[int]:
    return [math.prod(size[place + 1 :]) for place in range(len(size))]


def _is_large(size: Any) -> bool:
    return math.prod(size) * _LARGEST_ITEM_BYTES >= LEAST_BYTES and min(size, default=0) > 0


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested
        and tensor.is_cpu
        and name_of_dtype(tensor.dtype) is not None
        and tensor.dtype is not torch.complex32  # of which torch warns
        and not (tensor.is_inference() or tensor.is_conj() or tensor.is_neg() or any(getattr(tensor, "names", ())))
    )


def _are_alike(target: Any, source: Any) -> bool:
    """Return whether a copy of a large tensor to another is one of its bytes, of which autograd need not know."""
    return (
        type(target) in _KINDS
        and type(source) in _KINDS
        and _is_plain(target)
        and _is_plain(source)
        and target.shape == source.shape
        and target.dtype is source.dtype
        and _is_large(target.shape)
        and target.is_contiguous()
        and source.is_contiguous()
        and not (torch.is_grad_enabled() and (target.requires_grad or source.requires_grad))
    )


def _is_ordinary_moment() -> bool:
    """Return whether nobody looks at the operators that torch runs, nor wants other memory than usual."""
    try:
        return not (
            torch.is_inference_mode_enabled()
            or torch.are_deterministic_algorithms_enabled()  # which fills what is empty
            or torch._C._get_tracing_state() is not None
            or torch._C._len_torch_dispatch_stack()
            or torch.autograd.forward_ad._current_level >= 0
            or torch._C._functorch.peek_interpreter_stack() is not None
        )
    except AttributeError:  # another torch than those this was written for
        return False


def _take_out(mode: TorchFunctionMode) -> None:
    """Take a mode off the stack, wherever it is there: the repository may have left others on."""
    above = [_overrides._pop_mode() for _ in range(len(_overrides._get_current_function_mode_stack()))]
    for one in reversed(above):
        if one is not mode:
            _overrides._push_mode(one)


def _number(rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return rest[0] if rest else kwargs["fill_value"]


# What else these functions take is left to torch.
_KNOWN = {"size", "fill_value", "dtype", "device", "requires_grad", "generator"}
_FILLS: dict[Callable[..., Any], _Fill] = {
    torch.empty: lambda *_: None,
    torch.zeros: lambda tensor, *_: tensor.zero_(),  # it is, and takes its pages now, as in process
    torch.ones: lambda tensor, *_: tensor.fill_(1),
    torch.full: lambda tensor, rest, kwargs: tensor.fill_(_number(rest, kwargs)),
    torch.rand: lambda tensor, _, kwargs: tensor.uniform_(generator=kwargs.get("generator")),
    torch.randn: lambda tensor, _, kwargs: tensor.normal_(generator=kwargs.get("generator")),
}
_OWN: dict[Callable[..., Any], Callable[..., torch.Tensor | None]] = {
    torch.Tensor.resize_: _Births.resized,
    torch.Tensor.resize_as_: _Births.resized,
    **dict.fromkeys(_FILLS, _Births.made),
    torch.Tensor.copy_: _Births.filled,
    **dict.fromkeys((torch.Tensor.clone, torch.Tensor.to), _Births.copied),
    **dict.fromkeys(
        (torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.float, torch.Tensor.double), _Births.copied
    ),
}
