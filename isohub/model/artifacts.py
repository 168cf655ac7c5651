"""TorchScript modules and exported programs of a worker's code, in this process, over the worker's own weights.

What a worker sends is only data everywhere else. Here it is a program, which runs in this process and may do
what this process may: both kinds are for repositories that are trusted in so many words, which `api` sees to
(see `hub.trust.require_explicit`). The numbers that come along are checked all the same.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from isohub.errors import ArtifactError, RemoteProtocolError
from isohub.hub.checkout import Checkout
from isohub.shm.tensors import tensor_over
from isohub.supervisor.worker import Worker
from isohub.telemetry import metadata
from isohub.telemetry.metadata import EXTRA_FILE, Metadata

__all__ = ["KINDS", "Returns", "check_inputs", "check_returns", "describe", "example", "make", "mark"]

Returns = Literal["module", "state_dict", "torchscript", "export"]

# What comes back as a program of its own, without the worker.
KINDS = ("torchscript", "export")


def describe(checkout: Checkout, entrypoint: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Metadata:
    """Return where what this entrypoint makes comes from."""
    repo = checkout.repo
    return metadata.fields_of(
        host=repo.host,
        repo=f"{repo.owner}/{repo.name}" if repo.owner else repo.name,
        ref=checkout.ref_name,
        commit=checkout.commit,
        tree_hash=checkout.tree_hash,
        entrypoint=entrypoint,
        arguments=metadata.arguments_text(args, kwargs),
    )


def check_returns(returns: str, *, isolated: bool) -> None:
    """Check what a load is to give back.

    Raises:
        ValueError: It is no such thing, or needs a worker where there is to be none.
    """
    if returns not in get_args(Returns):
        allowed = " | ".join(f'"{value}"' for value in get_args(Returns))
        raise ValueError(f"Unknown returns: {returns!r}. Allowed values: {allowed}.")
    if returns in KINDS and not isolated:
        raise ValueError(
            f'returns="{returns}" is made in a worker; with isolate=False load the module itself, and use '
            f"torch.{'jit.script' if returns == 'torchscript' else 'export.export'} on it"
        )


def check_inputs(returns: str, example_inputs: Any) -> Any:
    """Return example inputs as a tuple or dict; None for none.

    Raises:
        TypeError: They are neither, nor a tensor.
        ValueError: They are missing, or nothing asks for them.
    """
    if example_inputs is None:
        if returns == "export":
            raise ValueError('returns="export" needs example_inputs=(...): the compiler runs the module once on them')
        return None
    if returns not in ("torchscript", "export"):
        raise ValueError(f'example_inputs are for returns="torchscript" and "export", not for {returns!r}')
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs)
    if isinstance(example_inputs, dict) and all(isinstance(name, str) for name in example_inputs):
        return example_inputs
    raise TypeError(
        "example_inputs takes a tensor, a tuple of positional inputs, or a dict of keyword inputs, not "
        f"{example_inputs!r:.200}"
    )


def example(shape: list[int], dtype: str) -> torch.Tensor:
    """Return an example input: numbers below 1 of a floating point dtype, else zeros.

    Raises:
        ArtifactError: There is no such dtype.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ArtifactError(f"an example input of dtype {dtype!r}: torch has none of that name")
    made = torch.zeros(shape, dtype=kind)
    # A generator of its own: the model draws what it would draw without an example.
    return made.uniform_(generator=torch.Generator().manual_seed(0)) if kind.is_floating_point else made


def mark(result: Any, known: Metadata) -> Any:
    """Return `result`, which tells from now on where it comes from, if it is a state dict that can."""
    if isinstance(result, OrderedDict):
        vars(result)["isohub"] = known  # as torch itself keeps `_metadata` there
    return result


def make(kind: str, parts: object, known: Metadata, worker: Worker) -> Any:
    """Return the artifact that a worker took apart, over the same weights.

    Args:
        kind: `"torchscript"` or `"export"`.
        parts: What the worker answered; see `worker.artifacts`.
        known: Where it comes from.
        worker: The worker.

    Raises:
        RemoteProtocolError: The parts make no artifact; the worker was killed.
    """
    # Under the caller's inference mode there would be inference tensors, which nobody can write to after it.
    with torch.inference_mode(False):
        try:
            checked = _Parts(parts)
            return _script_module(checked, known) if kind == "torchscript" else _exported_program(checked, known)
        except RemoteProtocolError as fault:
            worker.condemn(fault)
            raise
        except Exception as error:
            lie = RemoteProtocolError(f"an artifact that cannot be read: {type(error).__name__}: {error}")
            worker.condemn(lie)
            raise lie from error


class _Parts:
    """What a worker answered, checked: bytes, and for each place a tensor; tied ones are one object here as there."""

    def __init__(self, parts: object) -> None:
        if not isinstance(parts, dict) or parts.keys() != {"code", "places", "tensors", "flags"}:
            raise RemoteProtocolError("an artifact without its parts")
        code, places, tensors, flags = parts["code"], parts["places"], parts["tensors"], parts["flags"]
        if not isinstance(code, bytes) or not all(isinstance(part, list) for part in (places, tensors, flags)):
            raise RemoteProtocolError("parts of an artifact that are of other kinds")
        if len(tensors) != len(flags) or not all(type(tensor) is torch.Tensor for tensor in tensors):
            raise RemoteProtocolError(f"{len(tensors)} tensors and {len(flags)} flags")
        self.code = code
        self._places: dict[tuple[str, str], int] = {}
        for place in places:
            if not isinstance(place, tuple) or [type(part) for part in place] != [str, str, int]:
                raise RemoteProtocolError("a place of an artifact that is none")
            path, name, index = place
            if not 0 <= index < len(tensors):
                raise RemoteProtocolError(f"tensor {index} of {len(tensors)}")
            self._places[path, name] = index
        self._tensors = [_leaf(tensor, flag) for tensor, flag in zip(tensors, flags, strict=True)]
        self._taken: dict[int, torch.Tensor] = {}
        self._left = set(self._places)

    def take(self, path: str, name: str, there: object, *, is_parameter: bool) -> torch.Tensor | None:
        """Return what to put into a place; None where what is there stays.

        Args:
            path: The module, or the table.
            name: The name in it.
            there: What is there: a tensor that stands in for it, or what another path put there.
            is_parameter: Whether it is to be a parameter.

        Raises:
            RemoteProtocolError: There is a tensor for it and no room, or room for it and no tensor, or it does not fit.
        """
        index = self._places.get((path, name))
        if index is None:
            if isinstance(there, torch.Tensor) and there.is_meta and there.numel():
                raise RemoteProtocolError(f"no tensor for {name!r:.200} of {path!r:.200}")
            return None
        self._left.discard((path, name))
        tensor = self._tensors[index]
        if index not in self._taken:
            self._taken[index] = nn.Parameter(tensor, requires_grad=tensor.requires_grad) if is_parameter else tensor
        if there is not self._taken[index] and (
            not isinstance(there, torch.Tensor) or (there.dtype, there.shape) != (tensor.dtype, tensor.shape)
        ):
            raise RemoteProtocolError(f"a tensor that does not fit {name!r:.200} of {path!r:.200}")
        return self._taken[index]

    def finish(self) -> None:
        """See that all tensors have been taken.

        Raises:
            RemoteProtocolError: There are some for places that do not exist.
        """
        if self._left:
            raise RemoteProtocolError(f"{len(self._left)} tensors for places that are not there")


def _leaf(tensor: torch.Tensor, requires_grad: object) -> torch.Tensor:
    """Return the tensor made anew, outside of the mode in which it was received."""
    if type(requires_grad) is not bool or (requires_grad and not (tensor.is_floating_point() or tensor.is_complex())):
        raise RemoteProtocolError(f"a tensor of {tensor.dtype} with gradients: {requires_grad!r:.20}")
    offset = int(tensor.storage_offset()) * tensor.itemsize
    shape, stride = list(tensor.shape), list(tensor.stride())
    return tensor_over(tensor.untyped_storage(), tensor.dtype, offset, shape, stride).requires_grad_(requires_grad)


def _script_module(parts: _Parts, known: Metadata) -> Any:
    # What torch.jit.load does, without its warning: filters of warnings belong to the whole process.
    unit = torch._C.CompilationUnit()
    loaded = torch._C.import_ir_module_from_buffer(unit, parts.code, None, {}, False)  # type: ignore[call-arg, arg-type]
    script: Any = torch.jit._recursive.wrap_cpp_module(loaded)  # type: ignore[no-untyped-call]
    for path, module in script.named_modules(remove_duplicate=False):
        for name, (_, is_parameter) in module._concrete_type.get_attributes().items():
            tensor = parts.take(path, name, module._c.getattr(name), is_parameter=is_parameter)
            if tensor is not None:
                module._c.setattr(name, tensor)
    parts.finish()
    script.isohub = known
    _save_with(script, known)
    return script


def _save_with(script: Any, known: Metadata) -> None:
    """Have `script.save`, and so `torch.jit.save`, write where it comes from.

    On this object alone: torch's own functions stay as they are in this process.
    """
    module, own = script._c, {EXTRA_FILE: known.as_json()}

    def save(f: Any, _extra_files: Mapping[str, Any] | None = None) -> None:
        module.save(str(f), _extra_files={**own, **(_extra_files or {})})

    def save_to_buffer(_extra_files: Mapping[str, Any] | None = None) -> Any:
        return module.save_to_buffer({**own, **(_extra_files or {})})

    vars(script).update(save=save, save_to_buffer=save_to_buffer)


def _exported_program(parts: _Parts, known: Metadata) -> Any:
    import torch.export

    program: Any = torch.export.load(io.BytesIO(parts.code))  # noqa: TID251 - of a trusted repository
    for table, values in (("state_dict", program._state_dict), ("constants", program._constants)):
        for name, there in list(values.items()):
            tensor = parts.take(table, name, there, is_parameter=isinstance(there, nn.Parameter))
            if tensor is not None:
                values[name] = tensor
    parts.finish()
    program.isohub = known
    return program
